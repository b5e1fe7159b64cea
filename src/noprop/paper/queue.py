"""Cells beside each other, each in a process of its own, until all are done or the time is up.

A process of its own for each cell: the peak of its memory is the cell's, and what one cell does to
a process (a failure, a leak) is gone with it.
"""

import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from noprop.errors import NoPropError, RunError
from noprop.files import write_whole
from noprop.machine import malloc_keeps_memory
from noprop.paper.measure import Job, run_cell
from noprop.run.processes import Child, stop
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
    left, running = list(jobs), dict[Connection, tuple[Job, Child]]()
    try:
        while left or running:
            while left and len(running) < beside:
                if is_done(left[0]):
                    yield left.pop(0), None
                else:
                    job = left.pop(0)
                    child = Child(_work, job, name=job.name, daemon=False)
                    running[child.pipe] = job, child
            if not running:
                return
            left_s = math.inf if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                return
            heard = wait(list(running), min(TICK, left_s))
            if not heard:
                emit(Tick())
            for connection in heard:
                assert isinstance(connection, Connection)
                job, child = running[connection]
                try:
                    message = child.receive()
                except NoPropError as error:
                    message = error
                if isinstance(message, Event):
                    emit(replace(message, run=job.name))
                else:
                    del running[connection]
                    child.join()
                    yield job, message
    finally:
        stop([child for _, child in running.values()], GRACE)


def _work(connection: Connection, job: Job) -> None:
    """Run a cell in this process; it stops by SIGTERM, which the parent's word becomes."""
    torch.set_num_threads(1)
    try:
        with answered_between_updates(), malloc_keeps_memory():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if hasattr(signal, "pthread_sigmask"):  # it was blocked while this process started
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            threading.Thread(target=_hear, args=(connection,), daemon=True).start()
            connection.send(run_cell(job, connection.send))
    except (NoPropError, BrokenPipeError):
        raise
    except Exception as error:
        text = f"{job.name}: failed: {type(error).__name__}: {error}"
        with suppress(RunError):
            write_whole(job.folder / "error.txt", traceback.format_exc().encode())
            text += f"; where, is in {job.folder / 'error.txt'}"
        raise RunError(text) from None


def _hear(connection: Connection) -> None:
    """Wait for the word to stop: training then ends after the update at hand, all else at once."""
    with suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)
