"""Small helpers that every module may use."""
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


class UserError(Exception):
    """Something the user can put right: one line that says what, where and what to do."""


def make_folder(folder: Path, flag: str = '--result_dir') -> Path:
    """Make a writable folder with its parents; raises UserError naming the flag that moves it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else 'permission denied'
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(f'cannot write to {folder}: {reason}; give another folder with {flag}')
    return folder


# torch is imported inside the functions that need it, so that `main.py --help` answers at once


def pick_device(name: str):
    """A torch device by name; `auto` is cuda, else mps, else cpu."""
    import torch

    if name == 'auto':
        if torch.cuda.is_available():
            name = 'cuda'
        else:
            name = 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps') from None
    missing = {'cuda': not torch.cuda.is_available(),
               'mps': not torch.backends.mps.is_available(), 'cpu': False}.get(device.type, True)
    if missing or (device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f'--device {name}: this machine has no such device that torch '
                        f'{torch.__version__} can use; leave --device out, or use --device cpu')
    return device


def cores() -> int:
    """Processor cores that this process may use; of several on one machine each has its part."""
    if hasattr(os, 'sched_getaffinity'):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    return max(1, there // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def ahead(function: Callable, items: Iterable, threads: int) -> Iterator:
    """function(item) of every item, in order, worked out by threads ahead of use.

    At most two results a thread wait to be used, so memory stays flat. Without threads it is map.
    """
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def spread(items: list, count: int) -> list:
    """At most `count` of the items, evenly spread."""
    return items[::-(-len(items) // count)] if items else items


def bar_interval() -> float:
    """Seconds between two updates of a progress bar: often for a person, seldom in a log file."""
    return 0.1 if sys.stderr.isatty() else 15


def set_seed(seed: int) -> None:
    """Seed every generator of random numbers that the program or its libraries may use."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seeded(numbers: tuple[int, ...]):
    """A torch.Generator on the CPU that is a function of these numbers alone."""
    import torch

    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def to_unit_range(values: np.ndarray) -> np.ndarray:
    """Stretch an array to [0, 1] by its own range; a constant array becomes 0."""
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
