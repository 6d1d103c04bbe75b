"""The student of stage 2: its losses, its augmentation, its targets, and that it learns."""
import math

import numpy as np
import pytest
import torch

import losses
import student
from augmentation import Draws, change_pose, fade, recolour
from networks import BatchNormBlock, LocatorStudent, MaskPrediction, SegmentationNetwork, build_networks
from outline import CORE, deeper_than
from settings import Architecture
from student import Student


def squares(count, size=32, seed=0):
    """Noise pictures with a bright square, and the square's mask: count×3×H×W, count×1×H×W."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.uniform(-1, -0.4, (count, 3, size, size)).astype(np.float32))
    mask = torch.zeros(count, 1, size, size)
    for index in range(count):
        top, left = rng.integers(4, size - 14, 2)
        mask[index, :, top:top + 10, left:left + 10] = 1
    return torch.where(mask > 0, 0.8, image), mask


@pytest.fixture
def make_student(tiny_settings):
    def make(**changed):
        torch.manual_seed(0)
        return Student(tiny_settings(stage=2, **{'iteration': 50, 'batch_size': 4, 'ch': 8,
                                                 'lr': 3e-3, **changed}), torch.device('cpu'))
    return make


def test_losses_are_their_formulas():
    rng = torch.Generator().manual_seed(0)
    logit, target, weight = (torch.rand(3, 1, 4, 5, generator=rng) for _ in range(3))
    p = torch.sigmoid(logit)
    cross = -(target * p.log() + (1 - target) * (1 - p).log())
    assert torch.allclose(losses.cross_entropy(logit, target, weight),
                          (weight * cross).sum() / weight.sum())
    expected = [1 - (2 * (w * q * t).sum() + 1) / ((w * (q + t)).sum() + 1)
                for q, t, w in zip(p, target, weight)]
    assert torch.allclose(losses.dice(logit, target, weight), torch.stack(expected).mean())


def test_losses_at_their_ends():
    lesion = torch.zeros(2, 1, 8, 8)
    lesion[:, :, 2:5, 2:5] = 1
    everywhere = torch.ones_like(lesion)
    sure = (lesion - 0.5) * 100
    for loss in (losses.cross_entropy, losses.dice):
        assert loss(sure, lesion, everywhere) < 1e-6
        assert loss(-sure, lesion, everywhere) > 0.9
        # what does not count does not matter, and nothing that counts is no number lost
        assert loss(sure, 1 - lesion, torch.zeros_like(lesion)) == 0
        assert loss(sure[:0], lesion[:0], everywhere[:0]) == 0
    assert losses.dice(torch.full_like(lesion, -100.0), torch.zeros_like(lesion), everywhere) < 1e-6


@pytest.mark.parametrize('ch, size', [(4, (32, 32)), (6, (48, 36)), (3, (100, 60))])
@pytest.mark.parametrize('img_ch', [1, 3])
def test_the_network_keeps_the_size(ch, size, img_ch):
    architecture = Architecture('first', ch, 1, True, 4, 32, img_ch, 'student')
    network = SegmentationNetwork(architecture)
    made = network.predict_mask(torch.rand(2, img_ch, *size) * 2 - 1)
    assert made.mask.shape == (2, 1, *size) and 0 <= made.mask.min() <= made.mask.max() <= 1
    assert made.heatmap is None


def changed(image, mask, seed):
    draws = Draws(torch.Generator().manual_seed(seed), len(image))
    image, mask = change_pose(torch.cat([image, mask], 1), draws, 180).split([image.shape[1], 1], 1)
    return recolour(image, draws), mask.round()


def a_locator(ch):
    """A locator as if it had learned: no statistic is at its start."""
    torch.manual_seed(1)
    locator = build_networks(Architecture('first', ch, 1, True, 4, 32, 3, 'locator'))['locator']
    with torch.no_grad():
        for _ in range(3):
            locator(torch.rand(4, 3, 32, 32) * 2 - 1)
    return locator.eval()


@pytest.mark.parametrize('size', [(32, 32), (16, 20)])
def test_a_student_that_goes_on_begins_as_the_locator(make_student, size):
    locator = a_locator(8)
    learner = make_student(student='locator')
    learner.begin_from(locator.state_dict())
    image = torch.rand(2, 3, *size) * 2 - 1
    for name in ('student', 'average', 'teacher'):
        network = learner.networks[name].train()
        assert isinstance(network, LocatorStudent)
        logit = network(image)
        assert logit.shape == (2, 1, *size)
        middle = torch.nn.functional.interpolate(locator(image), size=size, mode='bilinear')
        assert torch.allclose(logit, middle, atol=1e-5)
    with pytest.raises(ValueError, match='shape'):
        learner.begin_from(a_locator(4).state_dict())


def test_it_learns_without_touching_the_statistics_of_stage_0(make_student):
    learner = make_student(student='locator', lr=3e-3, renew_freq=0)
    learner.begin_from(a_locator(8).state_dict())
    before = {name: buffer.clone() for name, buffer in learner.networks.named_buffers()}
    values = [learner.step(batch_of(*squares(4, seed=number)), number) for number in range(40)]
    assert values[-1]['total'] < 0.7 * values[0]['total']
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.networks.named_buffers())
    assert any(isinstance(part, BatchNormBlock) for part in learner.networks['average'].modules())


def test_first_targets_are_drawn_once(make_student, monkeypatch):
    learner = make_student()
    first, other = batch_of(*squares(3)), batch_of(*squares(3, seed=1))
    expected = [learner.first_targets(batch) for batch in (first, other)]
    monkeypatch.setattr(student, 'teaching_targets', None)  # to call it again would fail
    for batch, targets in zip((first, other), expected):
        assert (np.stack(learner.first_targets(batch)) == np.stack(targets)).all()
    assert not (np.stack(expected[0]) == np.stack(expected[1])).all()


def test_fading_moves_lesions_towards_or_away_from_the_usual_colour():
    image = torch.full((64, 3, 16, 16), 0.2)
    image[:, :, 4:8, 4:8] = -0.3
    faded = fade(image, Draws(torch.Generator().manual_seed(0), 64))
    assert -1 <= faded.min() and faded.max() <= 1
    contrast = (faded[:, :, 0, 0] - faded[:, :, 5, 5]) / 0.5
    assert torch.allclose(contrast, contrast[:, :1].expand(-1, 3), atol=1e-5)  # alike in all channels
    assert 0.4 <= contrast.min() < 0.5 and 1.2 < contrast.max() <= 1.3
    light = faded[:, :, 0, 0] - 0.2
    assert light.abs().max() <= 0.25 + 1e-6 and light.std(0).min() > 0.05
    again = fade(image, Draws(torch.Generator().manual_seed(0), 64))
    assert torch.equal(faded, again)


def test_picture_and_target_move_together():
    """A picture that is its own mask stays so under the geometry; colour moves it but little."""
    _, mask = squares(16)
    image = (mask * 2 - 1).repeat(1, 3, 1, 1)
    moved, target = changed(image, mask, 1)
    assert set(target.unique().tolist()) <= {0.0, 1.0} and -1 <= moved.min() <= moved.max() <= 1
    bright = (moved.mean(1, keepdim=True) > 0).float()
    assert (bright - target).abs().mean() < 0.03
    assert (target - mask).abs().mean() > 0.02  # and it did move


def test_augmentation_depends_on_its_seed_alone():
    image, mask = squares(4)
    once, again, other = (changed(image, mask, seed) for seed in (3, 3, 4))
    assert all(torch.equal(*pair) for pair in zip(once, again))
    assert not torch.equal(once[0], other[0])


def batch_of(image, mask, normal=2):
    rng = np.random.default_rng(9)
    empty = rng.uniform(-1, -0.4, (normal, *image.shape[1:])).astype(np.float32)
    return {'A': image, 'B': torch.from_numpy(empty), 'mask': mask * 2 - 1}


@pytest.mark.parametrize('normal', [0, 2])
def test_it_learns_what_the_teacher_shows(make_student, normal):
    """Stage-1 masks in which a fifth of the lesions are missing: the student finds them all."""
    learner = make_student(normal_batch=normal, warm_up=30, renew_freq=10, guard=0.0)
    for iteration in range(50):
        image, mask = squares(4, seed=iteration)
        wrong = mask * (torch.rand(4, 1, 1, 1,
                                   generator=torch.Generator().manual_seed(iteration)) > 0.2)
        values = learner.step(batch_of(image, wrong, normal), iteration)
        assert all(math.isfinite(value) for value in values.values())
        assert 0 <= values['mask_share'] <= 1
    learner.networks.eval()
    image, mask = squares(16, seed=1000)
    with torch.no_grad():
        found = learner.mask_network.predict_mask(image).mask > 0.5
    lesion = mask > 0
    assert (found & lesion).sum() / (found | lesion).sum() > 0.7


def test_targets_before_and_after_the_warm_up(make_student):
    learner = make_student(warm_up=10, renew_freq=5, component='all', guard=0.3, fit=False)
    image, mask = squares(3)
    batch = batch_of(image, mask)
    target, weight = learner.targets(batch, 9)
    assert torch.equal(target, mask) and (weight == 1).all()

    class Fixed(torch.nn.Module):
        """Says of the first picture the mask moved a little, of the others nothing at all."""

        def predict_mask(self, image):
            soft = torch.full_like(mask, 0.1)
            soft[0] = 0.1 + 0.8 * mask[0].roll(2, -1)
            return MaskPrediction(soft)

    learner.networks['teacher'] = Fixed()
    target, weight = learner.targets(batch, 10)
    assert torch.equal(target[0], mask[0].roll(2, -1))
    assert torch.equal(target[1:], mask[1:])  # the guard keeps the stage-1 masks
    assert (weight == 1).all()
    no_guard = make_student(warm_up=10, component='all', guard=0.0, fit=False)
    no_guard.networks['teacher'] = Fixed()
    assert no_guard.targets(batch, 10)[0][1:].sum() == 0
    never = make_student(warm_up=10, renew_freq=0, component='all', fit=False)
    assert torch.equal(never.targets(batch, 40)[0], mask)
    careful = make_student(warm_up=10, component='all', guard=0.3, confidence=0.9,
                           fit=False)
    careful.networks['teacher'] = Fixed()
    _, weight = careful.targets(batch, 10)
    assert (weight[0] == 0).all() and (weight[1:] == 1).all()


def test_a_fitted_target_keeps_the_core_of_the_first_one(make_student):
    """Even when the teacher says that nothing is left of the lesion but a corner."""
    learner = make_student(warm_up=10, component='all', guard=0.0)
    image, mask = squares(3)
    batch = batch_of(image, mask)
    first, _ = learner.targets(batch, 9)

    class Shrinking(torch.nn.Module):
        def predict_mask(self, image):
            return MaskPrediction(0.9 * mask * mask.roll((3, 3), (2, 3)))

    learner.networks['teacher'] = Shrinking()
    target, _ = learner.targets(batch, 10)
    core = torch.from_numpy(np.stack([deeper_than(CORE, one[0].numpy() > 0) for one in first]))
    assert core.any() and (target[:, 0].bool() & core).sum() == core.sum()


def test_the_teacher_is_renewed_from_the_average_when_it_is_due(make_student):
    learner = make_student(warm_up=2, renew_freq=3)
    first = {key: value.clone() for key, value in learner.networks['teacher'].state_dict().items()}

    def teacher_is(state):
        return all(torch.equal(value, state[key])
                   for key, value in learner.networks['teacher'].state_dict().items())

    renewed = []
    for iteration in range(8):
        learner.step(batch_of(*squares(4, seed=iteration)), iteration)
        if teacher_is(learner.networks['average'].state_dict()):
            renewed.append(iteration + 1)
    assert renewed == [2, 5, 8] and not teacher_is(first)


def test_the_average_follows_its_formula(make_student):
    learner = make_student(ema_decay=0.5)
    before = [part.clone() for part in learner.networks['average'].parameters()]
    learner.step(batch_of(*squares(4)), 20)  # far enough for the decay to be 0.5
    for old, mean, new in zip(before, learner.networks['average'].parameters(),
                              learner.networks['student'].parameters()):
        assert torch.allclose(mean, 0.5 * old + 0.5 * new, atol=1e-6)
