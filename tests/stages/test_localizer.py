"""The localizer of stage 0: its localization maps, what it learns, and its schedule."""
import math

import pytest
import torch

from config import Config, resolve
from helpers import TINY, squares
from networks import Localizer
from stages.localizer import LocalizerStage


@pytest.fixture
def network() -> Localizer:
    torch.manual_seed(0)
    return Localizer(Config(stage=0, **TINY)).eval()


@pytest.mark.parametrize('size', [(32, 32), (40, 24)])
def test_its_maps_reach_from_the_normal_logit_to_their_maximum(size, network):
    image = torch.rand(3, 3, *size) * 2 - 1
    network.normal_logit.fill_(-100)
    output = network.predict_mask(image)
    assert output.mask.shape == (3, 1, *size)
    assert output.heatmap.shape == (3, 1, size[0] // 4, size[1] // 4)
    assert 0 <= output.mask.min() and 0.9 < output.mask.max() <= 1
    network.normal_logit.fill_(100)  # nothing rises above what normal images show
    assert network.predict_mask(image).mask.max() == 0


def test_without_an_upright_side_rotated_images_have_rotated_maps(network):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    network.normal_logit.copy_(network(image).min().detach())
    for change in (lambda x: x.flip(3), lambda x: x.rot90(1, (2, 3))):
        for any_orientation in (False, True):
            network.any_orientation.fill_(any_orientation)
            moves_along = torch.allclose(network.predict_mask(change(image)).mask,
                                         change(network.predict_mask(image).mask), atol=1e-4)
            assert moves_along == (any_orientation or change(image).equal(image.flip(3)))
    for tta in ('none', 'mirror', 'flips'):
        stage = LocalizerStage(resolve({**TINY, 'stage': 0, 'tta': tta}), torch.device('cpu'))
        assert bool(stage.mask_network.any_orientation) == (tta == 'flips')


def test_it_localizes_what_only_disease_images_have():
    config = resolve({'dataset': 'any', 'stage': 0, 'ch': 8, 'img_size': 32, 'iteration': 80})
    torch.manual_seed(0)
    stage = LocalizerStage(config, torch.device('cpu'))
    for iteration in range(80):
        for group in stage.optimizers['localizer'].param_groups:
            group['lr'] = config.lr * stage.schedule(iteration / 80)
        gray = torch.rand(2, 8, 1, 1, 1) * 0.6  # of whole images, so that it tells nothing
        diseased = (squares(8, seed=iteration)[0] + gray[0]).clamp(max=1)
        normal = torch.rand(8, 3, 32, 32) * 0.6 - 1 + gray[1]
        result = stage.step({'A': diseased, 'B': normal}, iteration)
        assert all(math.isfinite(value) for value in result.losses.values())
        assert 0 <= result.mask_share <= 1 and not result.skipped
    image, masks = squares(32, seed=5000)
    maps = stage.networks.eval()['localizer'].predict_mask(image).mask
    assert maps[masks > 0].mean() > 1.5 * maps[masks == 0].mean()
    brightest = masks.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))
    assert brightest.mean() > 0.8
    assert not stage.final_warning()
    stage.recent_loss.fill_(0.6)
    assert 'hardly distinguishes' in stage.final_warning()


def test_the_schedule_rises_and_falls_to_nothing():
    rates = [LocalizerStage.schedule(step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.04) and rates[30] == pytest.approx(1) == max(rates)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    ramp = [LocalizerStage.normal_ramp(step / 10) for step in range(11)]
    assert ramp[0] == 0 and ramp[5:] == [1] * 6 and ramp == sorted(ramp)
