"""Optimizers, skipped steps, and what is said of collapsed masks."""
import math

import pytest
import torch
from torch import nn

from config import Config
from stages.optim import (
    GIVE_UP_AFTER,
    CollapseMonitor,
    NonFiniteError,
    NonFiniteGuard,
    make_optimizer,
    update,
)


def test_each_recipe_has_its_optimizer():
    config, network, cpu = Config(lr=0.25, weight_decay=0.125), nn.Linear(2, 1), torch.device('cpu')
    ours, published = (make_optimizer([network], config, cpu, published)
                       for published in (False, True))
    assert type(ours) is torch.optim.AdamW and type(published) is torch.optim.Adam
    assert published.defaults['betas'] == (0.5, 0.999)
    for optimizer in (ours, published):
        assert (optimizer.defaults['lr'], optimizer.defaults['weight_decay']) == (0.25, 0.125)


@pytest.mark.parametrize('broken', ['loss', 'gradient', ''])
def test_a_step_is_taken_only_where_everything_is_finite(broken):
    network = nn.Linear(2, 1)
    optimizer = make_optimizer([network], Config(lr=0.1), torch.device('cpu'))
    before = network.weight.clone()
    loss = network(torch.ones(1, 2)).sum()
    if broken == 'loss':
        loss = loss * math.inf
    if broken == 'gradient':  # finite itself
        loss = loss + torch.sqrt(network.weight * 0).sum()
    assert update(optimizer, loss) == bool(broken)
    assert torch.equal(network.weight, before) == bool(broken)
    assert bool(optimizer.state) == (not broken)


def test_the_guard_counts_and_gives_up():
    guard = NonFiniteGuard()
    fine, broken = {'total': 1.0, 'dice': 1.0}, {'total': math.nan, 'dice': math.nan}
    assert guard.watch(fine, 0.0, 1) == ''
    message = guard.watch(broken, 1.0, 2)
    assert 'iteration 2: the dice loss became nan' in message and '(1 so far)' in message
    assert guard.watch(fine, 0.0, 3) == '' and guard.in_a_row == 0
    assert 'the gradients are no longer finite' in guard.watch(fine, 1.0, 4)
    assert guard.count == 2
    with pytest.raises(NonFiniteError, match='at iteration 4 and .* steps in a row.*lower --lr'):
        for iteration in range(5, 4 + GIVE_UP_AFTER):
            guard.watch(broken, 1.0, iteration)


def test_collapsed_masks_are_said_once_and_when_it_is_over():
    monitor = CollapseMonitor()
    shares = [0.2] * 5 + [0.0] * 60 + [0.5] * 5 + [1.0] * 60 + [math.nan]
    messages = [message for share in shares if (message := monitor.watch(share))]
    assert [message.split(' (')[0] for message in messages] == [
        'masks of disease images have become empty',
        'masks of disease images are no longer empty',
        'masks of disease images have become full']
    assert monitor.state == 'full'
