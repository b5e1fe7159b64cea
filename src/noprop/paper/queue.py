"""Training of several cells at a time, each in a separate process, until a deadline.

The peak memory of a separate process is that of its cell, and its failures and leaks do not affect
other cells.
"""

import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from noprop.errors import NoPropError, RunError
from noprop.files import write_whole
from noprop.machine import malloc_keeps_memory
from noprop.paper.measure import Job, run_cell
from noprop.run.processes import Child, stop, when_asked
from noprop.training.events import Emit, Event, Tick
from noprop.training.signals import answered_between_updates

__all__ = ["run_jobs"]

# Seconds that a cell has to write a checkpoint when it is stopped. An update of the adjoint method,
# a thousand steps forward and backward, takes about ten.
GRACE = 40.0
TICK = 5.0  # seconds without events after which ``Tick`` is emitted: scoring may take minutes


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_a_time: int,
    emit: Emit,
    deadline: float | None = None,
    is_done: Callable[[Job], bool] = lambda job: False,
) -> Iterator[tuple[Job, dict[str, Any] | NoPropError | None]]:
    """Train and measure cells, and yield each job with its record, or the error that stopped it.

    Args:
        jobs: Jobs in the order in which they start.
        at_a_time: Number of cells to train at a time.
        emit: Function that is called with every event; ``run`` names the event's run.
        deadline: Time on the monotonic clock at which running jobs are stopped with a checkpoint,
            and the iterator ends.
        is_done: Function that returns whether another command has done a job meanwhile; such a job
            is yielded with None.

    Running jobs are also stopped with a checkpoint if the iterator is closed, or raises.
    """
    left, running = list(jobs), dict[Connection, tuple[Job, Child]]()
    try:
        while left or running:
            while left and len(running) < at_a_time:
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
    """Run a cell in this process; a message of the parent stops it by SIGTERM."""
    torch.set_num_threads(1)
    try:
        with answered_between_updates(), malloc_keeps_memory():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if hasattr(signal, "pthread_sigmask"):  # SIGTERM was blocked while the process started
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            when_asked(connection, partial(os.kill, os.getpid(), signal.SIGTERM))
            connection.send(run_cell(job, connection.send))
    except (NoPropError, BrokenPipeError):
        raise
    except Exception as error:
        text = f"{job.name}: failed: {type(error).__name__}: {error}"
        with suppress(RunError):
            write_whole(job.folder / "error.txt", traceback.format_exc().encode())
            text += f"; see {job.folder / 'error.txt'}"
        raise RunError(text) from None
