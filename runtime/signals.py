"""Signals that stop a run: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (as batch systems send).

While the training loop runs, the first is deferred: the loop finishes the iteration, saves and
ends. A second SIGINT, or any outside the loop, ends the program at once with KeyboardInterrupt. One
that torchrun does not forward (SIGUSR1, by default) ends torchrun alone; the loop notices that."""
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1')
           if hasattr(signal, name)]  # Windows has no SIGUSR1
REPEAT_SECONDS = 1  # with torchrun a signal within this time is the same one again

stop_reason = ''  # why the run is to end: a signal's name, or that torchrun has ended
_stop_time = 0.0
_in_loop = False
_launcher = None  # process id of torchrun


@contextmanager
def handled() -> Iterator[None]:
    """Within, the signals are handled as described above. Python allows that in the main thread
    alone; in others, as in a notebook's, nothing changes."""
    global stop_reason
    stop_reason = ''
    earlier_handlers = {}
    with suppress(ValueError):
        for number in SIGNALS:
            earlier_handlers[number] = signal.signal(number, _receive)
    try:
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, the first signal only sets `stop_reason`; the loop has to ask `stop_requested`."""
    global _in_loop, _launcher
    _in_loop = True
    _launcher = os.getppid() if 'WORLD_SIZE' in os.environ else None
    try:
        yield
    finally:
        _in_loop = False


def stop_requested() -> bool:
    """Whether the loop should end after this iteration."""
    global stop_reason
    if not stop_reason and _launcher not in (None, os.getppid()):
        stop_reason = 'torchrun has ended'
        _announce(stop_reason)
    return bool(stop_reason)


def _announce(reason: str, hint: str = '') -> None:
    with suppress(OSError):  # stderr may be closed already
        print(f'\n{reason}: finishing this iteration, then saving{hint}', file=sys.stderr,
              flush=True)


def _receive(number: int, frame: FrameType | None) -> None:
    global stop_reason, _stop_time
    name = signal.Signals(number).name
    now = time.monotonic()
    # the terminal sends Ctrl-C to all processes, and torchrun forwards it once more
    is_repeat = 'WORLD_SIZE' in os.environ and now - _stop_time < REPEAT_SECONDS
    if _in_loop and not stop_reason:
        stop_reason, _stop_time = name, now
        _announce(name, '; again to leave at once' if name == 'SIGINT' else '')
    elif (number == signal.SIGINT and not is_repeat) or not _in_loop:
        stop_reason = stop_reason or name
        raise KeyboardInterrupt(name)
