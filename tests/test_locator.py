"""The locator of stage 0: its pooling, its maps, what it learns, and its place before stage 1."""
import math

import numpy as np
import pytest
import torch

import losses
from augmentation import Draws, blur_some
from conftest import TINY_FLAGS, assert_one_line_error, command
from locator import Locating
from networks import Locator, build_networks
from settings import Architecture, resolve


def architecture(ch=4):
    return Architecture('first', ch, 1, True, 4, 32, 3, 'locator')


def test_pooling_lies_between_mean_and_maximum():
    evidence = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    pooled = math.log(sum(math.exp(5 * e) for e in range(4)) / 4) / 5
    assert 1.5 < pooled < 3
    of_disease = losses.image_label(evidence, diseased=True).item()
    assert of_disease == pytest.approx(math.log(1 + math.exp(-pooled)))
    of_normal = losses.image_label(evidence, diseased=False).item()
    assert of_normal == pytest.approx(math.log(1 + math.exp(pooled)))
    assert losses.no_evidence(torch.zeros(2, 1, 3, 3)).item() == pytest.approx(math.log(2))
    assert losses.no_evidence(torch.full((1, 1, 2, 2), -50.0)).item() < 1e-12


@pytest.mark.parametrize('size', [(32, 32), (40, 24)])
def test_its_masks_reach_from_the_normal_level_to_their_maximum(size):
    torch.manual_seed(0)
    network = Locator(architecture()).eval()
    image = torch.rand(3, 3, *size) * 2 - 1
    network.normal_level.fill_(-100)
    made = network.predict_mask(image)
    assert made.mask.shape == (3, 1, *size) and made.heatmap.shape == (3, 1, size[0] // 4, size[1] // 4)
    assert 0 <= made.mask.min() and 0.9 < made.mask.max() <= 1
    network.normal_level.fill_(100)  # nothing rises above what normal pictures show
    assert network.predict_mask(image).mask.max() == 0


def test_where_no_side_is_up_turned_pictures_have_turned_masks():
    torch.manual_seed(0)
    network = Locator(architecture()).eval()
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    network.normal_level.copy_(network(image).min().detach())
    for changed in (lambda x: x.flip(3), lambda x: x.rot90(1, (2, 3))):
        for no_side_is_up in (False, True):
            network.no_side_is_up.fill_(no_side_is_up)
            same = torch.allclose(network.predict_mask(changed(image)).mask,
                                  changed(network.predict_mask(image).mask), atol=1e-4)
            assert same == (no_side_is_up or changed(image).equal(image.flip(3)))


def test_blurred_pictures_keep_range_and_mean_and_depend_on_the_draws_alone():
    image = torch.rand(32, 3, 32, 32) * 2 - 1
    once, again, other = (blur_some(image, Draws(torch.Generator().manual_seed(seed), 32))
                          for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.abs().max() <= 1
    unchanged = [torch.equal(*pair) for pair in zip(once, image)]
    assert 4 <= sum(unchanged) <= 16  # three of ten stay
    assert (once.mean((1, 2, 3)) - image.mean((1, 2, 3))).abs().max() < 0.05
    assert once.std() < image.std()


def pictures_with_squares(count, seed, diseased=True):
    """Noise on a random grey; diseased ones hold a bright square. And the squares as masks."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(-0.6, 0, (count, 1, 1, 1)) + rng.normal(0, 0.1, (count, 3, 32, 32))
    mask = np.zeros((count, 32, 32), bool)
    for picture, place in zip(image, mask):
        top, left = rng.integers(4, 20, 2)
        if diseased:
            place[top:top + 9, left:left + 9] = True
            picture[:, place] += 0.8
    return torch.from_numpy(image.clip(-1, 1).astype(np.float32)), mask


def test_it_finds_what_only_disease_pictures_have():
    settings = resolve({'dataset': 'any', 'stage': 0, 'ch': 8, 'img_size': 32, 'iteration': 80,
                        'batch_size': 8, 'device': 'cpu'})
    torch.manual_seed(0)
    learner = Locating(settings, torch.device('cpu'))
    for iteration in range(80):
        for group in learner.optimizers['locator'].param_groups:
            group['lr'] = settings.lr * learner.schedule(iteration / 80)
        values = learner.step({'A': pictures_with_squares(8, iteration)[0],
                               'B': pictures_with_squares(8, iteration + 1000, False)[0]}, iteration)
        assert all(math.isfinite(value) for value in values.values())
    image, mask = pictures_with_squares(32, 5000)
    learner.networks.eval()
    with torch.no_grad():
        found = learner.mask_network.predict_mask(image).mask[:, 0].numpy()
    assert found[mask].mean() > 1.5 * found[~mask].mean()
    brightest = [mask[index].flat[one.argmax()] for index, one in enumerate(found)]
    assert np.mean(brightest) > 0.8
    assert not learner.remark()
    learner.recent_loss.fill_(0.6)
    assert 'hardly tells' in learner.remark()


def test_the_schedule_rises_and_falls_to_nothing():
    rates = [Locating.schedule(step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.04) and rates[30] == pytest.approx(1) == max(rates)
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_a_build_of_its_networks_and_a_file_without_one(tmp_path):
    assert list(build_networks(architecture())) == ['locator']
    assert_one_line_error(command('--dataset', 'x', '--data_root', tmp_path, '--stage', 1,
                                  '--scheme', 'student', *TINY_FLAGS), '--scheme student')
