"""Optimizers, steps that are taken only where every number is finite, and two watchmen."""
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from config import Config
from networks import PretrainedEncoder
from runtime import distributed

PRETRAINED_RATE = 0.3
GIVE_UP_AFTER = 10  # skipped iterations in a row
COLLAPSED = {'empty': (0, 0.005), 'full': (0.9, 1)}  # mean mask of disease images, from … to


class NonFiniteError(Exception):
    """Losses, gradients or weights are NaN or infinite."""


def make_optimizer(networks: Iterable[nn.Module], config: Config, device: torch.device,
                   published: bool = False) -> torch.optim.Optimizer:
    """AdamW with config.lr and config.weight_decay, pretrained encoders at PRETRAINED_RATE of that
    rate (`lr_scale` of their group); `published`: Adam with betas 0.5, 0.999."""
    networks = list(networks)
    pretrained = {parameter for network in networks for module in network.modules()
                  if isinstance(module, PretrainedEncoder) for parameter in module.parameters()}
    groups = {1.0: [], PRETRAINED_RATE: []}
    for network in networks:
        for parameter in network.parameters():
            groups[PRETRAINED_RATE if parameter in pretrained else 1.0].append(parameter)
    parameters = [{'params': group, 'lr_scale': scale} for scale, group in groups.items() if group]
    common = {'lr': config.lr, 'weight_decay': config.weight_decay,
              'fused': device.type in ('cpu', 'cuda')}
    if published:
        return torch.optim.Adam(parameters, betas=(0.5, 0.999), **common)
    return torch.optim.AdamW(parameters, **common)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Gradients of `loss` and one step, as in `step_if_finite`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return step_if_finite(optimizer, loss)


def step_if_finite(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step with the gradients that are there, unless one of them or the loss is NaN or infinite
    in any process. 1 where the step was skipped, else 0; weights and moments then stay unchanged.
    """
    norm = torch.nn.utils.get_total_norm([
        parameter.grad for group in optimizer.param_groups for parameter in group['params']
        if parameter.grad is not None])
    skipped = (~(loss.detach().isfinite() & norm.isfinite())).float()
    skipped = distributed.all_reduce_sum(skipped).clamp(max=1)
    if optimizer.defaults['fused']:  # these look at it themselves, so nobody waits for a GPU
        optimizer.found_inf = skipped
        optimizer.step()
    elif not skipped:
        optimizer.step()
    return skipped


class NonFiniteGuard:
    """Counts skipped iterations, and gives up when they follow each other."""

    SUMS = ('total', 'generator')  # of other losses, which say more

    def __init__(self) -> None:
        self.count = 0  # in the whole run
        self.in_a_row = 0
        self.first = ''  # what went wrong first in this row

    def watch(self, losses: dict[str, float], skipped: float, iteration: int) -> str:
        """A message for the user about an iteration, if there is any. Raises NonFiniteError."""
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if not wrong and not skipped:
            self.in_a_row = 0
            return ''
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        terms = [name for name in wrong if name not in self.SUMS] or wrong
        reason = (f'the {terms[0]} loss became {losses[terms[0]]}' if terms
                  else 'the gradients are no longer finite')
        if self.in_a_row == 1:
            self.first = f'{reason} at iteration {iteration}'
        if self.in_a_row == GIVE_UP_AFTER:
            raise NonFiniteError(f'{self.first} and {GIVE_UP_AFTER} steps in a row had to be '
                                 'skipped; try a lower --lr, or lower weights')
        return f'iteration {iteration}: {reason}; step skipped ({self.count} so far)'


class CollapseMonitor:
    """Says it when the masks of disease images have become empty or full, and when that is over."""

    def __init__(self) -> None:
        self.mask_share = None  # running mean of the mean mask
        self.state = ''  # empty or full; '' as they should be

    def watch(self, share: float) -> str:
        """A message for the user, if there is any. `share` is the mean mask of an iteration."""
        if not math.isfinite(share):
            return ''
        before = self.mask_share
        self.mask_share = share if before is None else 0.9 * before + 0.1 * share
        state = next((name for name, (low, high) in COLLAPSED.items()
                      if low <= self.mask_share <= high), '')
        if state == self.state:
            return ''
        change = f'have become {state}' if state else f'are no longer {self.state}'
        self.state = state
        return f'masks of disease images {change} (mean {self.mask_share:.3f})'
