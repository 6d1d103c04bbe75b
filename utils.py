"""Small helpers for every module, quick to import: numpy and torch only where they are needed."""
from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import secrets
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


# what to do about an error of the disk; else to give another place
REMEDIES = {errno.ENOSPC: 'make room on this disk', errno.EDQUOT: 'make room within your quota'}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, an error of the disk becomes an OSError of one line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # in words already
            raise
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f'{path}: too long for a file name; give another') from None
        remedy = REMEDIES.get(error.errno, 'give a place that can be written to')
        raise OSError(f'{path}: cannot be written: {error.strerror}; {remedy}') from error


# a file that is not whole yet: digest of its name to be, random number, ending
TEMPORARY = re.compile(r'\.tmp_([0-9a-f]{8})_[0-9a-f]{16}(\..*)?')


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """A new file beside `path`, of its ending in small letters, to write to: when the block ends it
    takes the place of `path` (`durable`: flushed to the disk before), after an error it is removed.
    Raises OSError naming `path`."""
    ending = ''.join(path.suffixes[-2:])[-16:].lower()
    temporary = path.with_name(f'.tmp_{_digest(path.name)}_{secrets.token_hex(8)}{ending}')
    with writing(path):
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            if durable:
                with open(temporary, 'rb+') as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # a folder that may no longer be written to
                temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove what a killed `atomic_write` left in a folder that nobody else writes into now, or of
    those of these names alone."""
    digests = None if names is None else set(map(_digest, names))
    for path in folder.iterdir() if folder.is_dir() else ():
        match = TEMPORARY.fullmatch(path.name)
        if match and (digests is None or match[1] in digests):
            path.unlink(missing_ok=True)


def find_files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """Files below a folder of these endings, in any case, sorted by path; no hidden ones. Links are
    followed, but every folder is read once, by its own path rather than by a link to it, and none
    that holds `folder`. Links that lead nowhere are among the files."""
    endings, found = tuple(endings), []
    folders, links, done = [folder], [], {str(parent) for parent in folder.resolve().parents}
    while folders or links:
        place = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(place)) in done:
            continue
        done.add(real)
        try:
            paths = sorted(path for path in place.iterdir() if not path.name.startswith('.'))
        except OSError as error:
            print(f'left out: {place}: cannot be listed: {error.strerror}', file=sys.stderr)
            continue
        for path in paths:
            if os.path.isdir(path):  # False, not an error, where it may not be looked at
                (links if path.is_symlink() else folders).append(path)
            elif path.name.lower().endswith(endings) and is_file_or_broken_link(path):
                found.append(path)
    return sorted(found)


def is_file_or_broken_link(path: Path) -> bool:
    """Whether reading gives content or an error at once: no folder, no pipe that would wait."""
    return os.path.isfile(path) or not os.path.exists(path)


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
