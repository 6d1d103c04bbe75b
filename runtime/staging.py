"""Folders that appear when they are whole, in place of earlier ones. Whoever calls these functions
holds the lock of the folder (`runtime.lock`)."""
import hashlib
import re
import secrets
import shutil
from pathlib import Path

from runtime.files import make_folder, writing


def new_staging_folder(folder: Path, flag: str = '--result_dir') -> Path:
    """An empty folder in which `folder` can grow: `new` in a hidden one beside it, of a name that
    nobody else has. What a killed program left beside `folder` is removed. Raises UserError."""
    make_folder(folder.parent, flag)
    remove_leftovers(folder)
    parent = folder.with_name(f'.{folder.name}.{secrets.token_hex(8)}.part')
    with writing(parent):
        parent.mkdir()
        (parent / 'new').mkdir()
    return parent / 'new'


def replace_folder(folder: Path, staging: Path) -> None:
    """Let `staging` take the place of `folder`, which is gone only when that is done."""
    with writing(folder):
        if folder.exists():
            folder.rename(staging.with_name('old'))
        staging.rename(folder)
    shutil.rmtree(staging.parent, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted or killed program left beside `folder`; where it ended between the
    two renamings of `replace_folder`, the earlier folder comes back."""
    if not folder.parent.is_dir():
        return
    name = re.compile(rf'\.{re.escape(folder.name)}\.[0-9a-f]{{16}}\.part')
    for leftover in list(folder.parent.iterdir()):
        if not name.fullmatch(leftover.name) or leftover.is_symlink():
            continue
        if (leftover / 'old').is_dir() and not folder.exists():
            (leftover / 'old').rename(folder)
        shutil.rmtree(leftover, ignore_errors=True)


def digests(folder: Path, record: str = 'prepare.json') -> dict[str, str]:
    """Of each file below a folder, by its path there, a digest of its content, and of each folder
    that holds nothing; `record`, the file that keeps them, is left out."""
    found = {}
    for path in sorted(folder.rglob('*')):
        if path.is_symlink():  # of which there is none where this program wrote
            found[path.relative_to(folder).as_posix()] = 'link'
        elif path.is_dir():
            if not any(path.iterdir()):
                found[path.relative_to(folder).as_posix()] = 'folder'
        elif path != folder / record:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


def changed_files(folder: Path, written: dict[str, str], record: str = 'prepare.json') -> list[str]:
    """The files below a folder that were not `written`, see `digests`, or were changed since, or
    are there no more."""
    found = digests(folder, record)
    return sorted(name for name in found.keys() | written.keys()
                  if found.get(name) != written.get(name))
