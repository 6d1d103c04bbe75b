"""The losses against values computed by hand, steps that are skipped, and collapsed masks."""
import math

import numpy as np
import pytest
import torch

from config import Config
from networks import DiscriminatorOutput, pool_logits
from stages import losses, optim


def test_known_answers():
    output = DiscriminatorOutput(torch.full((2, 1, 3, 3), 0.25), torch.full((2, 2), -1.0), None)
    assert losses.adversarial(output, real=True) == pytest.approx(0.75 ** 2 + 2 ** 2)
    assert losses.adversarial(output, real=False) == pytest.approx(0.25 ** 2 + 1)
    assert losses.l1(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5)) == 0.5
    logit = torch.tensor([[0.0, 2.0]])
    for diseased, sign in ((True, -1), (False, 1)):
        expected = (np.logaddexp(0, 0) + np.logaddexp(0, 2 * sign)) / 2
        assert losses.class_attention(logit, diseased) == pytest.approx(expected)
    assert losses.normal_pixels(torch.zeros(2, 1, 3, 3)).item() == pytest.approx(math.log(2))
    assert losses.normal_pixels(torch.full((1, 1, 2, 2), -50.0)).item() < 1e-12


def test_image_label_of_logits_pooled_between_mean_and_maximum():
    logits = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]], [[[3.0, 3.0], [3.0, 3.0]]]])
    pooled = math.log(sum(math.exp(5 * logit) for logit in range(4)) / 4) / 5
    assert 1.5 < pooled < 3 and pool_logits(logits).tolist() == pytest.approx([pooled, 3])
    for diseased, sign in ((True, -1), (False, 1)):
        loss = losses.image_label(pool_logits(logits[:1]), diseased).item()
        assert loss == pytest.approx(np.logaddexp(0, pooled * sign))


def test_cross_entropy_and_dice():
    rng = torch.Generator().manual_seed(0)
    logit, target = (torch.rand(3, 1, 4, 5, generator=rng) for _ in range(2))
    p = torch.sigmoid(logit)
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert torch.allclose(losses.cross_entropy(logit, target), expected)
    by_image = [1 - (2 * (q * t).sum() + 1) / ((q + t).sum() + 1)
                for q, t in zip(p, target, strict=True)]
    assert torch.allclose(losses.dice(logit, target), torch.stack(by_image).mean())
    lesion = torch.zeros(2, 1, 8, 8)
    lesion[:, :, 2:5, 2:5] = 1
    sure = (lesion - 0.5) * 100
    for loss in (losses.cross_entropy, losses.dice):
        assert loss(sure, lesion) < 1e-6
        assert loss(-sure, lesion) > 0.9
        assert loss(sure[:0], lesion[:0]) == 0  # of an empty batch, and a number
    assert losses.dice(torch.full_like(lesion, -100.0), torch.zeros_like(lesion)) < 1e-6


@pytest.mark.parametrize('broken', ['loss', 'gradient', ''])
def test_a_step_is_taken_only_where_everything_is_finite(broken):
    network = torch.nn.Linear(2, 1)
    optimizer = optim.make_optimizer([network], Config(lr=0.1), torch.device('cpu'))
    before = network.weight.clone()
    loss = network(torch.ones(1, 2)).sum()
    if broken == 'loss':
        loss = loss * math.inf
    if broken == 'gradient':  # finite itself
        loss = loss + torch.sqrt(network.weight * 0).sum()
    assert optim.update(optimizer, loss) == bool(broken)
    assert torch.equal(network.weight, before) == bool(broken)
    for moments in optimizer.state.values():
        assert (moments['step'] == 0) == (not moments['exp_avg'].any()) == bool(broken)


def test_collapsed_masks_are_said_once_and_when_it_is_over():
    monitor = optim.CollapseMonitor()
    shares = [0.2] * 5 + [0.0] * 60 + [0.5] * 5 + [1.0] * 60 + [math.nan]
    messages = [message for share in shares if (message := monitor.watch(share))]
    assert [message.split(' (')[0] for message in messages] == [
        'masks of disease images have become empty',
        'masks of disease images are no longer empty',
        'masks of disease images have become full']
    assert monitor.state == 'full'
