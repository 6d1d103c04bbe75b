"""Small helpers for every module, quick to import: numpy and torch only where they are needed."""
from __future__ import annotations

import difflib
import io
import os
import random
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


class UserError(Exception):
    """Something the user can put right: one line that says what, where and what to do."""


def similar_word(word: str, known: Iterable[str]) -> str:
    """The known word that somebody meant: equal but for case, - and _, then begun by `word` (the
    first), then the most alike; '' if none is."""
    plain = {name.lower().replace('-', '_'): name for name in reversed(list(known)) if name}
    word = word.lower().replace('-', '_')
    begun = [name for name in reversed(plain) if name.startswith(word) and len(word) > 1]
    found = ([word] if word in plain else begun) or difflib.get_close_matches(word, plain, 1, 0.7)
    return plain[found[0]] if found and word else ''


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


# how text files are written and read: UTF-8, and a file name that is not UTF-8 as \udc.., which
# every program can read and JSON gives back; the same on a terminal that lacks a character
TEXT = {'encoding': 'utf-8', 'errors': 'backslashreplace'}


def print_any_character() -> None:
    """Let stdout and stderr show characters that their encoding lacks as escapes, as TEXT does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook put there
            stream.reconfigure(errors=TEXT['errors'])


TEMPORARY = '.tmp_'  # beginning of names of files that are not whole yet; hidden files are skipped


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path`, of the same ending, to write to: when the block ends it takes
    the place of `path` (`durable`: flushed to the disk before), after an error it is removed."""
    temporary = path.with_name(f'{TEMPORARY}{path.name}')
    try:
        yield temporary
        if durable:
            with open(temporary, 'rb+') as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # a folder that may no longer be written to
            temporary.unlink(missing_ok=True)


def staging_folder(folder: Path) -> Path:
    """Where a folder grows until it is whole: a hidden one beside it."""
    return folder.with_name(f'.{folder.name}.part')


def new_staging_folder(folder: Path) -> Path:
    """That folder, made anew and empty; what an interrupted program left there is removed."""
    staging = staging_folder(folder)
    shutil.rmtree(staging, ignore_errors=True)
    return make_folder(staging)


def replace_folder(folder: Path) -> None:
    """Let the staging folder take the place of `folder`, which is gone only when that is done."""
    old = folder.with_name(f'.{folder.name}.old')
    if folder.exists():
        folder.rename(old)
    staging_folder(folder).rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_staging(folder: Path) -> None:
    """Remove what an interrupted program left beside `folder`."""
    old = folder.with_name(f'.{folder.name}.old')
    if old.exists() and not folder.exists():  # ended between the two renamings: it comes back
        old.rename(folder)
    for leftover in (staging_folder(folder), old):
        shutil.rmtree(leftover, ignore_errors=True)


def find_files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """Files below a folder of these endings, in any case, sorted by path; no hidden ones."""
    endings = tuple(endings)
    return sorted(path for path in folder.rglob('*')
                  if path.name.lower().endswith(endings) and not path.is_dir()
                  and not any(part.startswith('.') for part in path.relative_to(folder).parts))


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


def rescale_to_unit(values: np.ndarray) -> np.ndarray:
    """An array scaled to [0, 1] by its own range; a constant array becomes 0."""
    import numpy as np
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
