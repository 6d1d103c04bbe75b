"""Locks: one program at a time writes into a folder or file.

A lock is a hidden file beside what it protects, which the kernel locks (flock) for as long as the
process lives, however that ends: after kill -9 the next program takes the file over. The file says
who holds it, for the message, and for network disks, where a machine may not see the locks of
another: a file that names another machine is a lock until somebody removes it."""
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from runtime.files import TEXT, make_folder, writing
from utils import UserError

ENDING = '.label-transfer-lock'


@contextmanager
def locked(target: Path, flag: str = '--result_dir', wait: bool = False) -> Iterator[None]:
    """Within, this program alone writes into `target`, a folder or file. Raises UserError, naming
    who does, where another one does already; with `wait` it waits for one on this machine. `flag`
    is the option that moves `target`. Without flock (Windows) there is no lock."""
    if fcntl is None:
        yield
        return
    path = lock_file(target, flag)
    descriptor = _open(path, target, flag, wait)
    try:
        with writing(path):
            _check_holder(descriptor, path, target, flag)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def lock_file(target: Path, flag: str = '--result_dir') -> Path:
    """Where the lock of `target` lies: beside it or, of a folder in one that cannot be written to,
    in it. Links to one target have one lock. Makes the folder; raises UserError."""
    target = Path(os.path.realpath(target))
    name = f'.{target.name}{ENDING}'
    if len(os.fsencode(name)) > 255:
        name = f'.{hashlib.sha256(os.fsencode(target.name)).hexdigest()}{ENDING}'
    if target.is_dir() and not os.access(target.parent, os.W_OK):
        return target / name
    return make_folder(target.parent, flag) / name


def _open(path: Path, target: Path, flag: str, wait: bool) -> int:
    """The descriptor of the lock file, locked; raises UserError where another process has it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(f'{path}: the lock of {target} cannot be opened: {error.strerror}; '
                            f'remove it if nothing writes there, or give another {flag}') from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = _read(descriptor)
            os.close(descriptor)
            raise _in_use(target, flag, holder or {}) from None
        except OSError:
            pass  # a disk without such locks: what the file says has to do
        except BaseException:
            os.close(descriptor)
            raise
        with suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # removed by the one who had it


def _check_holder(descriptor: int, path: Path, target: Path, flag: str) -> None:
    """Raises UserError unless the holder that the file names, if any, has certainly ended."""
    holder, mine = _read(descriptor), _this_process()
    if holder is None:
        raise UserError(f'{path}: lies where the lock of {target} belongs; move it away')
    if holder and holder['host'] != mine['host'] and holder['boot'] != (mine['boot'] or None):
        raise UserError(f'{target}: in use by process {holder["pid"]} on {holder["host"]} since '
                        f'{holder["since"]}; if that has ended, remove {path}')
    # the kernel has no lock of it any more, unless the disk knows none
    if (holder and holder['boot'] == mine['boot'] and holder['pid'] != mine['pid']
            and holder['start'] == _start(holder['pid']) != ''):
        raise _in_use(target, flag, holder)


def _in_use(target: Path, flag: str, holder: dict[str, Any]) -> UserError:
    who = (f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'
           if holder else 'another process')
    return UserError(f'{target}: in use by {who}; wait until it has ended, or give another {flag}')


def _read(descriptor: int) -> dict[str, Any] | None:
    """What a lock file says of its holder: {} where it is empty, None where it is no lock file."""
    text = os.pread(descriptor, 4096, 0)
    try:
        holder = json.loads(text) if text else {}
        return holder if not text or holder.keys() == _this_process().keys() else None
    except (ValueError, AttributeError):
        return None


def _this_process() -> dict[str, Any]:
    """What a lock file says of its holder. `boot` is the machine's as long as it runs, also for its
    containers ('' where there is no /proc); `start` tells a later process of the same number."""
    boot = ''
    with suppress(OSError):
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(**TEXT).strip()
    return {'host': socket.gethostname(), 'boot': boot, 'pid': os.getpid(),
            'start': _start(os.getpid()), 'since': f'{datetime.now():%Y-%m-%d %H:%M:%S}'}


def _start(pid: int) -> str:
    """When a living process started, in the kernel's ticks; '' where there is none, or no /proc."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text(**TEXT).rpartition(')')[2].split()
    except (OSError, ValueError):
        return ''
    return '' if fields[0] in 'ZX' else fields[19]
