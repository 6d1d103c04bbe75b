"""Files that are written and found: text, whole files or none, errors of the disk in words."""
import errno
import hashlib
import io
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils import UserError, printable

# how text files are written and read: UTF-8, and a file name that is not UTF-8 as \udc.., which
# every program can read and JSON gives back; the same on a terminal that lacks a character
TEXT = {'encoding': 'utf-8', 'errors': 'backslashreplace'}


def print_any_character() -> None:
    """Let stdout and stderr show characters that their encoding lacks as escapes, as TEXT does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook put there
            stream.reconfigure(errors=TEXT['errors'])


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
TEMPORARY = re.compile(r'\.tmp_([0-9a-f]{8})_[0-9a-f]{16}(\..*)?', re.DOTALL)


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """A new file beside `path`, of its ending in small letters, to write to: when the block ends it
    takes the place of `path` (`durable`: flushed to the disk before), after an error it is removed.
    Raises OSError naming `path`."""
    name = path.name.lower()
    ending = '.nii.gz' if name.endswith('.nii.gz') else path.suffix.lower()
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
    that holds `folder`. Links that lead nowhere are among the files, whatever their names."""
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
            text = f'left out: {place}: cannot be listed: {error.strerror}'
            print(printable(text), file=sys.stderr)
            continue
        for path in paths:
            if os.path.isdir(path):  # False, not an error, where it may not be looked at
                (links if path.is_symlink() else folders).append(path)
            elif is_broken_link(path) or (path.name.lower().endswith(endings)
                                          and is_file_or_broken_link(path)):
                found.append(path)
    return sorted(found)


def is_broken_link(path: Path) -> bool:
    """Whether this is a link that leads nowhere."""
    return os.path.islink(path) and not os.path.exists(path)


def is_file_or_broken_link(path: Path) -> bool:
    """Whether reading gives content or an error at once: no folder, no pipe that would wait."""
    return os.path.isfile(path) or not os.path.exists(path)
