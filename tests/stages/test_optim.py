"""Optimizers, skipped steps, and what is said of collapsed masks."""
import math

import pytest
import torch
from torch import nn

from config import Config
from stages.optim import CollapseMonitor, make_optimizer, update

CPU = torch.device('cpu')


@pytest.mark.parametrize('broken', ['loss', 'gradient', ''])
def test_a_step_is_taken_only_where_everything_is_finite(broken):
    network = nn.Linear(2, 1)
    optimizer = make_optimizer([network], Config(lr=0.1), CPU)
    before = network.weight.clone()
    loss = network(torch.ones(1, 2)).sum()
    if broken == 'loss':
        loss = loss * math.inf
    if broken == 'gradient':  # finite itself
        loss = loss + torch.sqrt(network.weight * 0).sum()
    assert update(optimizer, loss) == bool(broken)
    assert torch.equal(network.weight, before) == bool(broken)
    assert bool(optimizer.state) == (not broken)


def test_collapsed_masks_are_said_once_and_when_it_is_over():
    monitor = CollapseMonitor()
    shares = [0.2] * 5 + [0.0] * 60 + [0.5] * 5 + [1.0] * 60 + [math.nan]
    messages = [message for share in shares if (message := monitor.watch(share))]
    assert [message.split(' (')[0] for message in messages] == [
        'masks of disease images have become empty',
        'masks of disease images are no longer empty',
        'masks of disease images have become full']
    assert monitor.state == 'full'
