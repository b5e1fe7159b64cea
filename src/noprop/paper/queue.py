"""Cells beside each other, each in a process of its own, until all are done or the time is up.

A process of its own for each cell: the peak of its memory is the cell's, and what one cell does to
a process (a failure, a leak) is gone with it.
"""

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from noprop.errors import NoPropError, RunError
from noprop.files import write_whole
from noprop.machine import malloc_keeps_memory
from noprop.paper.measure import Job, run_cell
from noprop.run.workers import deaf_children, end_with_parent
from noprop.training.events import Emit, Event, Tick
from noprop.training.signals import answered_between_updates

__all__ = ["run_jobs"]

# Seconds that a cell has to leave a checkpoint when it is asked to stop. An update of the adjoint
# method, a thousand steps forward and backward, takes about ten.
GRACE = 40.0
TICK = 5.0  # seconds of silence after which ``tick`` is emitted: scoring may take minutes


def run_jobs(
    jobs: Sequence[Job],
    *,
    beside: int,
    emit: Emit,
    deadline: float | None = None,
    is_done: Callable[[Job], bool] = lambda job: False,
) -> Iterator[tuple[Job, dict[str, Any] | NoPropError | None]]:
    """Train and measure cells, and give each back with its line, or with what stopped it.

    Args:
        jobs: in the order in which they are begun.
        beside: how many at a time.
        emit: called with every event; ``run`` says whose it is.
        deadline: on the monotonic clock. Whatever is under way then is stopped with a checkpoint,
            and this ends, the remaining jobs undone.
        is_done: whether a job was done meanwhile, by another command; it is given back with None.

    Closing the iterator, or an exception in it, stops what is under way with a checkpoint too.
    """
    left, running = list(jobs), _Running()
    try:
        while left or running.jobs:
            while left and len(running.jobs) < beside:
                if is_done(left[0]):
                    yield left.pop(0), None
                else:
                    running.start(left.pop(0))
            if not running.jobs:
                return
            left_s = math.inf if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                return
            heard = wait(list(running.jobs), min(TICK, left_s))
            if not heard:
                emit(Tick())
            for connection in heard:
                assert isinstance(connection, Connection)
                job = running.jobs[connection]
                message = _received(connection, job)
                if isinstance(message, Event):
                    emit(replace(message, run=job.name))
                else:
                    running.end(connection)
                    yield job, message
    finally:
        running.stop()


class _Running:
    """The processes under way, by the connection to each."""

    def __init__(self) -> None:
        self.jobs: dict[Connection, Job] = {}
        self.processes: dict[Connection, BaseProcess] = {}

    def start(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(job, theirs), name=job.name)
        with deaf_children():
            process.start()
        theirs.close()
        self.jobs[ours], self.processes[ours] = job, process

    def end(self, connection: Connection) -> None:
        del self.jobs[connection]
        self.processes.pop(connection).join()
        connection.close()

    def stop(self) -> None:
        """Have all leave a checkpoint and end; after a while, make them."""
        try:
            for connection in self.jobs:
                with suppress(OSError):
                    connection.send(None)
            deadline = time.monotonic() + GRACE
            for connection, process in self.processes.items():
                while process.is_alive() and time.monotonic() < deadline:
                    with suppress(EOFError, OSError):  # what it says would fill the pipe
                        while connection.poll(0.05):
                            connection.recv()
                    process.join(0.05)
        finally:  # a second Ctrl-C comes here at once
            for connection, process in self.processes.items():
                if process.is_alive():
                    process.kill()
                process.join()
                connection.close()


def _received(connection: Connection, job: Job) -> Event | dict[str, Any] | NoPropError:
    """Return an event of a cell, or its end: its line, or what stopped it."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        reason = "its process ended unexpectedly (out of memory, or killed)"
        return RunError(f"{job.name}: {reason}")


def _serve(job: Job, connection: Connection) -> None:
    """Run a cell in this process; whoever started it hears Ctrl-C, and asks."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    try:
        with answered_between_updates(), malloc_keeps_memory():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if hasattr(signal, "pthread_sigmask"):  # it was blocked while this process started
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            threading.Thread(target=_hear, args=(connection,), daemon=True).start()
            connection.send(run_cell(job, connection.send))
    except (KeyboardInterrupt, BrokenPipeError):
        return
    except NoPropError as error:
        connection.send(error)
    except Exception as error:
        text = f"{job.name}: failed: {type(error).__name__}: {error}"
        with suppress(RunError):
            write_whole(job.folder / "error.txt", traceback.format_exc().encode())
            text += f"; where, is in {job.folder / 'error.txt'}"
        connection.send(RunError(text))


def _hear(connection: Connection) -> None:
    """Wait for the word to stop: training then ends after the update at hand, all else at once."""
    with suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)
