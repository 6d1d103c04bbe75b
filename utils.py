"""Small helpers for every module, quick to import: numpy and torch only where they are needed."""
from __future__ import annotations

import difflib
import functools
import random
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


class UserError(Exception):
    """Something the user can put right: one line that says what, where and what to do; `listing`
    are perhaps further lines, ready to be printed."""

    def __init__(self, text: str, listing: str = '') -> None:
        super().__init__(text)
        self.listing = listing


def printable(message: object) -> str:
    """A message as one line: newlines, escape codes and the like, as names may hold, as escapes."""
    return ''.join(one if one.isprintable() else one.encode('unicode_escape').decode()
                   for one in str(message))


def similar_word(word: str, known: Iterable[str], likeness: float = 0.7) -> str:
    """The known word that somebody meant: equal but for case, - and _, then begun by `word` (the
    first), then the most alike, of at least this likeness in [0, 1]; '' if none is."""
    plain = {name.lower().replace('-', '_'): name for name in reversed(list(known)) if name}
    word = word.lower().replace('-', '_')
    begun = [name for name in reversed(plain) if name.startswith(word) and len(word) > 1]
    found = ([word] if word in plain else begun) or difflib.get_close_matches(
        word, plain, 1, likeness)
    return plain[found[0]] if found and word else ''


def pick_device(name: str) -> torch.device:
    """A torch device by name; `auto` is cuda, else mps, else cpu. Raises UserError."""
    import torch
    if name == 'auto':
        fallback = 'mps' if torch.backends.mps.is_available() else 'cpu'
        name = 'cuda' if torch.cuda.is_available() else fallback
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


@functools.cache
def has_bfloat16(device: str) -> bool:
    """Whether a kind of device (cpu, cuda, mps) computes in bfloat16 itself; where it only imitates
    that, --amp makes it slower (a CPU ten times). Says it once if not."""
    import torch
    if device == 'cuda':
        found, advice = torch.cuda.is_bf16_supported(including_emulation=False), 'GPUs since Ampere'
    elif device == 'cpu' and hasattr(torch.cpu, 'get_capabilities'):
        units = torch.cpu.get_capabilities()
        found = any(units.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))
        advice = 'CPUs with AVX512_BF16, AMX or Arm BF16'
    else:
        return True  # as the user says
    if not found:
        print(f'--amp True: left off, since this {device} has no units for bfloat16 and would be '
              f'slower with it; {advice} have them')
    return found


def progress_interval() -> float:
    """Seconds between two updates of a progress bar: often for a person, seldom in a log file."""
    return 0.1 if sys.stderr.isatty() else 15


def set_seed(seed: int) -> None:
    """Seed every generator of random numbers that the program or its libraries may use."""
    import numpy as np
    import torch
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_generator(*numbers: int) -> torch.Generator:
    """A torch.Generator on the CPU that is a function of these numbers alone."""
    import numpy as np
    import torch
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def evenly_spaced(items: list[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced."""
    return items[::-(-len(items) // count)] if items else items


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive value is above a negative one, ties by half,
    0 to 1. Both arrays hold numbers and are not empty."""
    import numpy as np
    ordered = np.sort(negative)
    below, not_above = (np.searchsorted(ordered, positive, side) for side in ('left', 'right'))
    return float((below + not_above).mean() / 2 / len(ordered))


def rescale_to_unit(values: np.ndarray) -> np.ndarray:
    """An array scaled to [0, 1] by its own range; a constant array becomes 0."""
    import numpy as np
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
