"""Signals that ask a run to end: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (as batch systems send).

While iterations run the first of them only asks; the training loop then finishes the iteration and
saves. A second SIGINT, or any of them outside the loop, ends at once with KeyboardInterrupt. A signal
that torchrun does not hand on (SIGUSR1, by default) ends torchrun alone; that, too, asks.
"""
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1')
           if hasattr(signal, name)]  # Windows has no SIGUSR1

asked = ''  # the signal's name, or what else asked
_asked_at = 0.0
_in_loop = False
_launcher = None  # process number of torchrun


@contextmanager
def listening():
    """Within, the signals are heard. Python allows it in the main thread alone; elsewhere, as in a
    notebook's threads, nothing changes."""
    global asked
    asked = ''
    before = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, _receive)
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def after_the_iteration():
    """Within, a signal only asks, and who runs the loop looks at `asked`."""
    global _in_loop, _launcher
    _in_loop = True
    _launcher = os.getppid() if 'WORLD_SIZE' in os.environ else None
    try:
        yield
    finally:
        _in_loop = False


def wanted() -> bool:
    """Whether the loop should end after this iteration."""
    global asked
    if not asked and _launcher not in (None, os.getppid()):
        asked = 'torchrun has ended'
        _say(asked)
    return bool(asked)


def _say(reason, hint=''):
    with suppress(OSError):  # nobody may be listening any more
        print(f'\n{reason}: finishing this iteration, then saving{hint}', file=sys.stderr, flush=True)


def _receive(number, frame):
    global asked, _asked_at
    name = signal.Signals(number).name
    now = time.monotonic()
    # torchrun hands on what the terminal already sent to all
    again = 'WORLD_SIZE' in os.environ and now - _asked_at < 1
    if _in_loop and not asked:
        asked, _asked_at = name, now
        _say(name, '; again to leave at once' if name == 'SIGINT' else '')
    elif number == signal.SIGINT and not again or not _in_loop:
        asked = asked or name
        raise KeyboardInterrupt(name)
