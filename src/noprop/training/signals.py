"""Ctrl-C and SIGTERM during training: they wait for the end of an update, so that it can be saved.

An update moves weights and optimizer state one after the other; what a signal interrupts in there
cannot be written as a checkpoint. So while a group is trained the first signal is kept until the
update at hand is made. A second one is answered at once, and so is any outside of training; but
SIGTERM may come twice for one cause.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = [
    "Terminated",
    "answered_between_updates",
    "ask",
    "asked",
    "named",
    "signals_kept",
    "stop_if_asked",
]


# Seconds in which a second SIGTERM is the first once more: a scheduler sends it to all processes,
# and so may whoever started them.
AGAIN = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it some time before SIGKILL."""


class _State:
    training = 0
    terminated = -math.inf  # when SIGTERM last came, if no Ctrl-C has come since
    asked: type[KeyboardInterrupt] | None = None
    last: type[KeyboardInterrupt] = KeyboardInterrupt


def _answer(number: int, frame: FrameType | None) -> None:
    now, before = time.monotonic(), _State.terminated
    _State.terminated = now if number == signal.SIGTERM else -math.inf
    if number == signal.SIGTERM and now - before < AGAIN:
        return
    kind = _State.last = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    if _State.training and _State.asked is None:
        _State.asked = kind
        return
    _State.asked = None
    raise kind


@contextmanager
def answered_between_updates() -> Iterator[None]:
    """In here both signals stop training after the update at hand; elsewhere at once.

    Handlers belong to the main thread, and are put back; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _answer) for number in (signal.SIGINT, signal.SIGTERM)}
    _State.asked, _State.last, _State.terminated = None, KeyboardInterrupt, -math.inf
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def signals_kept() -> Iterator[None]:
    """In here the first signal is kept for :func:`stop_if_asked`."""
    _State.training += 1
    try:
        yield
    finally:
        _State.training -= 1


def asked() -> bool:
    """Whether a signal was kept that :func:`stop_if_asked` would answer."""
    return _State.asked is not None


def ask() -> None:
    """Have training stop as by Ctrl-C."""
    _State.asked = _State.asked or KeyboardInterrupt


def stop_if_asked() -> None:
    """Answer the signal that was kept, if there is one.

    Raises:
        KeyboardInterrupt: For Ctrl-C; its kind :class:`Terminated` for SIGTERM.
    """
    if kind := _State.asked:
        _State.asked = None
        raise kind


@contextmanager
def named() -> Iterator[None]:
    """In here a library which waits makes a KeyboardInterrupt of any signal; it is told apart."""
    try:
        yield
    except KeyboardInterrupt:
        if _State.last is Terminated:
            raise Terminated from None
        raise
