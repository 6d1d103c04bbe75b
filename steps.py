"""Optimiser steps that are taken only where every loss and gradient is a number."""
import math

import torch
from torch import Tensor

import parallel

GIVE_UP_AFTER = 10  # skipped iterations in a row


class Diverged(Exception):
    """Losses or gradients are no longer numbers."""


def take(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step with the gradients that are there, unless one of them or the loss is NaN or infinite
    in any process. 1 where the step was skipped, else 0; weights and moments then stay as they were.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    bad = (~torch.isfinite(loss.detach())).float()
    try:  # no gradient is that large, so none is changed
        torch.nn.utils.clip_grad_norm_(parameters, math.inf, error_if_nonfinite=True)
    except RuntimeError:
        bad = torch.ones_like(bad)
    bad = parallel.total(bad).clamp(max=1)
    if not bad:
        optimizer.step()
    return bad


class BadSteps:
    """Counts skipped iterations, and gives up when they follow each other."""

    SUMS = ('total', 'generator')  # of other losses, which say more

    def __init__(self, count: int = 0):
        self.count = count  # in the whole run
        self.in_a_row = 0
        self.first = ''  # what went wrong first in this row

    def watch(self, values: dict[str, float], iteration: int) -> str:
        """What to tell the user of an iteration, if anything. Raises Diverged."""
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong and not values['skipped']:
            self.in_a_row = 0
            return ''
        self.count += 1
        self.in_a_row += 1
        terms = [name for name in wrong if name not in self.SUMS] or wrong
        what = (f'the {terms[0]} loss became {values[terms[0]]}' if terms
                else 'the gradients are no longer finite')
        if self.in_a_row == 1:
            self.first = f'{what} at iteration {iteration}'
        if self.in_a_row == GIVE_UP_AFTER:
            raise Diverged(f'{self.first} and {GIVE_UP_AFTER} steps in a row had to be skipped; try '
                           'a lower --lr, or lower weights')
        return f'iteration {iteration}: {what}; step skipped ({self.count} so far)'
