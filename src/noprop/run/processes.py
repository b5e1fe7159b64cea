"""Processes of this machine that are sent work and answer over a pipe.

On Linux they are forked from a server, which has imported torch and this package: all but the first
start in hundredths of a second. Elsewhere each one is spawned and imports for itself.

A process ends when its parent does, however that ends. It ignores Ctrl-C and SIGTERM: a terminal
sends the one, and a scheduler the other, to all processes; the parent alone answers, and asks the
others to stop.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from noprop.errors import NoPropError, RunError

__all__ = [
    "Child",
    "ProcessLostError",
    "end_with_parent",
    "signals_blocked",
    "start_server",
    "stop",
    "when_asked",
]

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
PRELOAD = ["noprop.run.preload", "noprop.cli"]  # the command's script imports the second


class ProcessLostError(RunError):
    """A process ended without an answer."""


class Child:
    """A process and the pipe to it.

    Args:
        target: A function of a module, called in the process with the other end of the pipe and the
            arguments. What it raises is raised here by :meth:`receive`; a ``KeyboardInterrupt``
            ends the process without a message.
        arguments: What the function is called with, small enough to send.
        name: The subject of error messages.
        daemon: Whether the process may start none itself.

    Attributes:
        name: As above.
        pipe: The end of this process.
        process: The process.
        heard: Whether it has sent anything.

    Raises:
        TypeError: If the function or an argument cannot be sent to another process.
    """

    def __init__(
        self,
        target: Callable[..., None],
        *arguments: Any,
        name: str = "a worker",
        daemon: bool = True,
    ):
        context = multiprocessing.get_context(METHOD)
        self.name, self.heard = name, False
        self.pipe, theirs = context.Pipe()
        values = (target, theirs, name, dict(os.environ), arguments)
        self.process = context.Process(target=_serve, args=values, name=name, daemon=daemon)
        start_server()
        try:
            with signals_blocked():
                self.process.start()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise TypeError(str(error)) from None
        finally:
            theirs.close()

    def send(self, message: Any) -> None:
        """Send a message; :meth:`receive` reports it if the process has ended."""
        with suppress(OSError):
            self.pipe.send(message)

    def receive(self) -> Any:
        """Return the next message; None when the function has returned.

        Raises:
            NoPropError: What the function raised.
            ProcessLostError: If the process ended without a message.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise ProcessLostError(
                f"{self.name}: its process ended unexpectedly (out of memory, or killed)"
            ) from None
        self.heard = True
        if isinstance(message, NoPropError):
            raise message
        return message

    def join(self) -> None:
        """Wait until the process has ended."""
        self.process.join()
        self.pipe.close()

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.join()


def stop(children: Collection[Child], grace: float) -> None:
    """Ask processes to save and to end, by the message None, and kill those that do not.

    One that has sent nothing may still import; it has nothing to save and is killed at once. An
    exception meanwhile, such as that of a second Ctrl-C, kills all.

    Args:
        children: The processes.
        grace: Seconds until they are killed.
    """
    try:
        asked = {child.pipe for child in children if child.heard or child.pipe.poll()}
        for child in children:
            if child.pipe in asked:
                child.send(None)
        deadline = time.monotonic() + grace
        while asked and (left := deadline - time.monotonic()) > 0:
            for pipe in wait(list(asked), left):
                assert isinstance(pipe, Connection)
                try:
                    pipe.recv()  # what they still report would fill the pipe and hold them up
                except (EOFError, OSError):
                    asked.discard(pipe)
    finally:
        for child in children:
            child.kill()


def start_server() -> None:
    """Start the process that others are forked from, if there is none: it imports for a second."""
    if METHOD != "forkserver":
        return
    from multiprocessing import forkserver

    multiprocessing.get_context(METHOD).set_forkserver_preload(PRELOAD)
    with signals_blocked():  # it inherits the block for good, and so do those forked from it
        forkserver.ensure_running()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM in processes started in this block; this one answers afterwards.

    Until a new process has set its own handlers it would answer the one with a stack trace and the
    other by ending without a checkpoint. A blocked signal is kept, where an ignored one is lost.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or starting a process starts it, and that ends the block
    numbers, heard = (signal.SIGINT, signal.SIGTERM), []
    # Another thread may hear them.
    before = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if heard:
            signal.raise_signal(heard[0])


def _serve(
    target: Callable[..., None],
    pipe: Connection,
    name: str,
    environment: dict[str, str],
    arguments: tuple[Any, ...],
) -> None:
    """Call a function in this new process, and send what it raises to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()  # that of the server is as old as the server
    os.environ.update(environment)
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        try:
            target(pipe, *arguments)
            pipe.send(None)
        except (EOFError, BrokenPipeError):
            raise
        except NoPropError as error:
            pipe.send(error)
        except Exception as error:
            pipe.send(RunError(f"{name} failed: {type(error).__name__}: {error}"))


def when_asked(pipe: Connection, action: Callable[[], None]) -> None:
    """Call a function, in a thread of this process, when the parent asks it to stop."""

    def hear() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
            action()

    threading.Thread(target=hear, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with the one that asked for it, seen at the pipe: a server forked it."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def end_with_parent(parent: int) -> None:
    """End this process, started by ``exec``, when its parent is gone; for a thread of its own."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
