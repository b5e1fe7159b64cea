"""Groups of units over local processes: blocks share and exchange nothing.

Which process trains a group changes nothing in its result. A worker ends when its parent does, and
saves a checkpoint first when it is asked to stop.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from noprop import __version__
from noprop.build import Task, build_embedding, build_method, choose_device, unit_names, use_bf16
from noprop.config import RunConfig
from noprop.data import Examples
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, NoPropError, RunError, TrainingError
from noprop.methods.base import Method, Unit
from noprop.training.checkpoint import load_tensors
from noprop.training.locks import BusyError, hold, remove_half_written
from noprop.training.loop import GroupTrainer
from noprop.training.memory import freed_memory_kept
from noprop.training.offload import Shelf, Waiting, units_wait

__all__ = [
    "Job",
    "checkpoint_path",
    "core_count",
    "deaf_children",
    "end_with_parent",
    "group_lock",
    "group_trainer",
    "groups_of",
    "thread_count",
    "train_groups",
    "worker_count",
]

COUPLED = "all"
ENDS = ("trained", "found", "busy")  # events after which a worker is given its next group
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What a worker needs, besides the name of a group: small enough to send, data by its file."""

    config: RunConfig
    task: Task
    folder: Path
    data: Path
    fingerprint: str
    factory: EncoderFactory | None = None
    version: str = __version__


class StopRequestedError(Exception):
    """The parent asked for an end."""


def groups_of(config: RunConfig) -> list[str]:
    """The groups that can be trained apart: each unit, or all at once when W_Embed is learned."""
    return [COUPLED] if config.method.learned else unit_names(config)


def checkpoint_path(folder: Path, group: str) -> Path:
    """A group's checkpoint in a run folder."""
    return folder / "units" / group / "checkpoint.safetensors"


def group_lock(folder: Path, group: str) -> Path:
    """The lock of whoever trains a group."""
    return folder / "units" / group / ".lock"


def worker_count(config: RunConfig, groups: int) -> int:
    """Processes to use: as many as asked for, at most one a group; on a GPU always this one."""
    if choose_device(config.train.device).type != "cpu":
        return 1
    return max(1, min(config.train.workers or core_count(), groups))


def core_count() -> int:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def thread_count(config: RunConfig) -> int:
    """Threads of each training process: as many as asked for.

    Else one, since blocks over processes use all cores better; but a method of one unit has nothing
    to spread, and is given as many as torch would take.
    """
    alone = len(unit_names(config)) == 1
    return config.train.threads or (torch.get_num_threads() if alone else 1)


def group_trainer(job: Job, group: str, emit: Emit) -> GroupTrainer:
    """What trains a group in this process, before its first update."""
    device = choose_device(job.config.train.device)
    tensors, _ = load_tensors(job.data)
    train, validation = (
        Examples(tensors[f"{part}/x"], tensors[f"{part}/y"]) for part in ("train", "validation")
    )
    embedding = build_embedding(job.config, job.task, None)
    embedding.load_state_dict({"weight": tensors["embedding"]})
    embedding.to(device)

    def build(only: str | None) -> tuple[Method, dict[str, Unit]]:
        method = build_method(job.config, job.task, embedding, factory=job.factory, only=only)
        units = {u.name: u for u in method.units if only in (None, u.name)}
        for unit in units.values():
            unit.module.to(device)
            if job.config.train.channels_last:
                unit.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return method, units

    checkpoint, shelf = checkpoint_path(job.folder, group), None
    if group == COUPLED and units_wait(job.config):
        method, here = build("readout")
        units = [here.get(name, Waiting(name)) for name in unit_names(job.config)]
        shelf = Shelf(checkpoint, lambda name: build(name)[1][name], job.fingerprint)
    else:
        method, here = build(None if group == COUPLED else group)
        units = list(here.values())
    return GroupTrainer(
        job.config,
        method,
        units,
        train.to(device),
        validation.to(device),
        job.task.normalization,
        bf16=use_bf16(job.config.train.precision, device),
        checkpoint=checkpoint,
        fingerprint=job.fingerprint,
        shelf=shelf,
        emit=emit,
    )


def train_group(job: Job, group: str, emit: Emit) -> None:
    """Train one group in this process, from its checkpoint if it has one.

    The last event says what came of it: ``trained``, ``found`` where another process was faster, or
    ``busy`` where one has it in hand.
    """
    if job.version != __version__:  # the package was replaced while its worker started
        raise RunError(f"worker: has noprop {__version__}, wanted {job.version} of its parent")
    lock = group_lock(job.folder, group)
    try:
        with hold(lock, f"{group}: another process is training it"):
            remove_half_written(lock.parent)
            trainer = group_trainer(job, group, emit)
            trainer.resume()
            if not trainer.is_finished:
                trainer.run()
                return
    except BusyError:
        emit({"event": "busy", "group": group})
        return
    emit({"event": "found", "group": group})


def train_groups(job: Job, groups: Sequence[str], workers: int, emit: Emit) -> None:
    """Train groups on ``workers`` processes; in this one if that is 1.

    Raises:
        TrainingError: What stopped a group; the others are stopped with a checkpoint each.
    """
    if workers == 1:
        threads = torch.get_num_threads()
        # As many as in a worker: sums then have one order, whatever the number of workers.
        torch.set_num_threads(job.config.train.threads or 1)
        try:
            with freed_memory_kept():
                for group in groups:
                    train_group(job, group, emit)
        finally:
            torch.set_num_threads(threads)
        return
    _train_on_processes(job, list(groups), workers, emit)


def _train_on_processes(job: Job, waiting: list[str], workers: int, emit: Emit) -> None:
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    silent: set[Connection] = set()  # those that have not said a word
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(job, theirs), daemon=True)
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


def _worker(job: Job, connection: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent answers, and asks
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(job.config.train.threads or 1)

    def emit(event: dict[str, Any]) -> None:
        connection.send(event)
        if connection.poll() and event["event"] not in ENDS:
            raise StopRequestedError

    try:
        with freed_memory_kept():
            while (group := connection.recv()) is not None:
                train_group(job, group, emit)
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
