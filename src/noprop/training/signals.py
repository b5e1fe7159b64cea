"""Ctrl-C and SIGTERM during training: handled at the end of an update, so that it can be saved.

An update changes weights and optimizer state one after the other; a state between the two cannot be
a checkpoint. So during training the first signal is deferred until the current update ends. A
second signal, or one outside training, is handled immediately. A second SIGTERM shortly after the
first counts as the same one.
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


# Seconds in which a second SIGTERM counts as the first: a scheduler sends it to all processes, and
# a parent process may send it again.
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
    """Install handlers in this block that stop training after the current update.

    Handlers belong to the main thread: in another thread nothing changes. The handlers before are
    restored at the end.
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
    """Defer the first signal in this block, for :func:`stop_if_asked` to handle."""
    _State.training += 1
    try:
        yield
    finally:
        _State.training -= 1


def asked() -> bool:
    """Return whether a signal was deferred."""
    return _State.asked is not None


def ask() -> None:
    """Request that training stops, as Ctrl-C does."""
    _State.asked = _State.asked or KeyboardInterrupt


def stop_if_asked() -> None:
    """Handle the signal that was deferred, if any.

    Raises:
        KeyboardInterrupt: For Ctrl-C; its subclass :class:`Terminated` for SIGTERM.
    """
    if kind := _State.asked:
        _State.asked = None
        raise kind


@contextmanager
def named() -> Iterator[None]:
    """Raise :class:`Terminated` for a KeyboardInterrupt in this block that SIGTERM caused.

    Some libraries raise a plain KeyboardInterrupt for any signal that arrives while they wait.
    """
    try:
        yield
    except KeyboardInterrupt:
        if _State.last is Terminated:
            raise Terminated from None
        raise
