"""Files that a command is going to write: compared with what it reads, with each other and with
what exists before anything is computed, and the place that is checked is the place that is written.
Paths are compared resolved, in composed Unicode and without case: some disks know no case."""
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from utils import UserError

MAX_NAME = 255  # bytes that file systems allow


def without_case(name: str) -> str:
    """What all names of one file have in common, on any disk."""
    return unicodedata.normalize('NFC', name).casefold()


def place(path: Path) -> str:
    """What all paths to one file have in common, on any disk."""
    return without_case(os.path.realpath(path))


def check(targets: Iterable[Path], sources: Iterable[Path], flag: str, overwrite: bool) -> None:
    """Raises UserError where a file to write is one of the `sources`, or lies in one that is a
    folder, or cannot be a file, or exists already and must not be replaced. `flag` names the
    targets."""
    entries: dict[Path, dict[str, str]] = {}
    read = {place(source): source for source in sources}
    for target in targets:
        of_target = place(target)
        for one in (of_target, *map(str, Path(of_target).parents)):
            if one in read:
                raise UserError(f'{flag}: {target} would be written over {read[one]}, which is '
                                'read, or into it; give another place')
        folder = target.parent
        if folder not in entries:
            above = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            if not above.is_dir():
                raise UserError(f'{flag}: {above} is no folder; give another place')
            names = os.listdir(folder) if above == folder else []
            entries[folder] = {without_case(name): name for name in names}
        existing = entries[folder].get(without_case(target.name))
        if existing and (folder / existing).is_dir():
            raise UserError(f'{flag}: {folder / existing} is a folder; give another place')
        if existing and not overwrite:
            raise UserError(f'{flag}: {folder / existing} exists already; --overwrite True '
                            'replaces what has the same name, or give another place')
