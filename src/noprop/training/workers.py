"""Groups of units over local processes of one thread each.

A worker ends when its parent does, and saves a checkpoint first when it is asked to stop.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from noprop.build import choose_device
from noprop.config import RunConfig
from noprop.errors import ConfigError, NoPropError, RunError, TrainingError
from noprop.training.folder import workplace
from noprop.training.groups import Job, Material, core_count, train_group
from noprop.training.memory import freed_memory_kept

__all__ = ["deaf_children", "end_with_parent", "threads_of", "train_groups", "worker_count"]

ENDS = ("trained", "found", "busy")  # events after which a worker is given its next group
Emit = Callable[[dict[str, Any]], None]


class StopRequestedError(Exception):
    """The parent asked for an end."""


def worker_count(config: RunConfig, groups: int) -> int:
    """Processes to use: as many as asked for, at most one a group; on a GPU always this one."""
    if choose_device(config.train.device).type != "cpu":
        return 1
    return max(1, min(config.train.workers or core_count(), groups))


def train_groups(
    job: Job, material: Material, groups: Sequence[str], workers: int, emit: Emit
) -> None:
    """Train groups on ``workers`` processes; in this one if that is 1.

    Raises:
        TrainingError: What stopped a group; the others are stopped with a checkpoint each.
    """
    with workplace(job.folder) as place:
        if workers == 1:
            with threads_of(job.config), freed_memory_kept():
                for group in groups:
                    train_group(job, material, group, emit)
            return
        packed = place / "data.safetensors"
        material.pack(packed)
        _train_on_processes(job, packed, list(groups), workers, emit)


@contextmanager
def threads_of(config: RunConfig) -> Iterator[None]:
    """As many threads as in every worker: sums then have one order, whatever their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.train.threads or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_on_processes(
    job: Job, packed: Path, waiting: list[str], workers: int, emit: Emit
) -> None:
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    silent: set[Connection] = set()  # those that have not said a word
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(job, packed, theirs), daemon=True)
            try:
                with deaf_children():
                    process.start()
            except (AttributeError, TypeError) as error:
                raise ConfigError(
                    f"encoder: cannot be sent to worker processes ({error}); give a function of a "
                    "module, or train.workers=1"
                ) from None
            theirs.close()
            processes[ours] = process
            silent.add(ours)
            ours.send(waiting.pop(0))
        busy = set(processes)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    event = connection.recv()
                except (EOFError, ConnectionError):
                    raise TrainingError(
                        "a worker process ended unexpectedly (out of memory, or killed); "
                        "resume with: noprop train --resume " + str(job.folder)
                    ) from None
                silent.discard(connection)
                if event["event"] == "error":
                    raise event["error"]
                emit(event)
                if event["event"] in ENDS:
                    if waiting:
                        connection.send(waiting.pop(0))
                    else:
                        connection.send(None)
                        busy.remove(connection)
    finally:
        try:
            _stop(processes, silent)
        except BaseException:  # a second Ctrl-C: they hear none themselves
            for process in processes.values():
                process.kill()
                process.join()
            raise


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started in here hear no Ctrl-C or SIGTERM, even while they import; this one does.

    A terminal sends Ctrl-C to all of them, and a scheduler SIGTERM; a child would answer the one
    with a stack trace and the other by ending without a checkpoint, before it is asked to stop.
    Both are blocked rather than ignored, for a blocked one is kept and delivered here at the end.
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


def _stop(processes: dict[Connection, BaseProcess], silent: set[Connection]) -> None:
    """Ask every worker to save and end; after a while, make it.

    One that still imports has nothing to save, and is not waited for: the first update is reported.
    """
    for connection, process in processes.items():
        try:
            if connection in silent and not connection.poll():
                process.kill()
            connection.send(None)
        except OSError:
            continue
    for connection, process in processes.items():
        deadline = time.monotonic() + 10
        while process.is_alive() and time.monotonic() < deadline:
            try:  # what it still reports would fill the pipe and hold it up
                while connection.poll(0.05):
                    connection.recv()
            except (EOFError, OSError):
                process.join(0.05)
        if process.is_alive():
            process.kill()
        process.join()
        connection.close()


def _worker(job: Job, packed: Path, connection: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent answers, and asks
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(job.config.train.threads or 1)

    def emit(event: dict[str, Any]) -> None:
        connection.send(event)
        if connection.poll() and event["event"] not in ENDS:
            raise StopRequestedError

    try:
        material = Material.unpack(packed)
        with freed_memory_kept():
            while (group := connection.recv()) is not None:
                train_group(job, material, group, emit)
    except (StopRequestedError, EOFError, BrokenPipeError):
        return
    except NoPropError as error:
        connection.send({"event": "error", "error": error})
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        connection.send({"event": "error", "error": RunError(f"a worker failed: {text}")})


def end_with_parent(parent: int) -> None:
    """End this process when its parent is gone; for a thread of its own."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
