"""Groups of units over local processes of one thread each.

A worker ends when its parent does, and saves a checkpoint first when it is asked to stop.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from noprop.build import choose_device, unit_names
from noprop.config import RunConfig
from noprop.errors import ConfigError, NoPropError, RunError, TrainingError
from noprop.machine import core_count, malloc_keeps_memory
from noprop.run.folder import workplace
from noprop.run.groups import COUPLED, Job, Material, share_of_groups, train_group
from noprop.training.events import Busy, Emit, Event, Followed, Found, Trained
from noprop.training.layout import Layout, choose_layout
from noprop.training.mesh import MeshTeam, keep_to_loopback, mesh_team
from noprop.training.signals import ask
from noprop.training.team import PeerLostError

__all__ = ["deaf_children", "end_with_parent", "local_layout", "threads_of", "train_groups"]

ENDS = Trained | Found | Busy | Followed  # events after which a worker is given its next group


class StopRequestedError(Exception):
    """The parent asked for an end."""


def local_layout(config: RunConfig, groups: Sequence[str]) -> Layout:
    """How the processes of this machine share some groups.

    As many as asked for, at most one a unit where none is cut into shards; on a GPU this one alone.
    """
    asked = 1
    if choose_device(config.train.device).type == "cpu":
        asked = config.train.workers or core_count()
    units = unit_names(config) if COUPLED in groups else groups
    return choose_layout(config, asked, units, shards=config.train.shards or 1)


def train_groups(
    job: Job, material: Material, groups: Sequence[str], layout: Layout, emit: Emit
) -> None:
    """Train groups on the processes of a layout; in this one if that is 1.

    Raises:
        TrainingError: What stopped a group; the others are stopped with a checkpoint each.
    """
    with workplace(job.folder) as place:
        if layout.size == 1:
            with threads_of(job.config), malloc_keeps_memory():
                for group in groups:
                    train_group(job, material, group, emit)
            return
        packed = place / "data.safetensors"
        material.pack(packed)
        if COUPLED in groups or layout.data > 1:
            ranks = range(layout.size)
            queues = [share_of_groups(job.config, layout, rank) for rank in ranks]
            seats = [Seat(layout, rank, place / "store") for rank in ranks]
        else:  # whoever is free takes the next
            queues, seats = [list(groups)] * layout.size, [None] * layout.size
        _train_on_processes(job, packed, queues, seats, emit)


@contextmanager
def threads_of(config: RunConfig) -> Iterator[None]:
    """As many threads as in every worker: sums then have one order, whatever their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.train.threads or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Seat:
    """The place of a worker in a team.

    Attributes:
        layout: of the team.
        rank: of the worker.
        store: a file by which they find each other.
    """

    layout: Layout
    rank: int
    store: Path

    @contextmanager
    def taken(self, config: RunConfig) -> Iterator[MeshTeam]:
        """The team, while its processes are connected."""
        keep_to_loopback()
        store = FileStore(str(self.store), self.layout.size)
        learned, cpu = config.method.learned, torch.device("cpu")
        with mesh_team(self.layout, self.rank, store, coupled=learned, device=cpu) as team:
            yield team


def _train_on_processes(
    job: Job,
    packed: Path,
    queues: Sequence[list[str]],
    seats: Sequence[Seat | None],
    emit: Emit,
) -> None:
    """Train the groups of the queues, one process for each; two may have the same queue."""
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    waiting: dict[Connection, list[str]] = {}
    silent: set[Connection] = set()  # those that have not said a word
    try:
        for queue, seat in zip(queues, seats, strict=True):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(job, packed, theirs, seat), daemon=True)
            try:
                with deaf_children():
                    process.start()
            except (AttributeError, TypeError) as error:
                raise ConfigError(
                    f"encoder: cannot be sent to worker processes ({error}); give a function of a "
                    "module, or train.workers=1"
                ) from None
            theirs.close()
            processes[ours], waiting[ours] = process, queue
            silent.add(ours)
            ours.send(queue.pop(0))
        busy = set(processes)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                event = _received(connection, job)
                silent.discard(connection)
                if isinstance(event, Exception):
                    raise _first_cause(event, busy - {connection}, job)
                if seats[0]:  # of a team some never say a word, but all have met once one does
                    silent.clear()
                if not isinstance(event, Followed):
                    emit(event)
                if isinstance(event, ENDS):
                    if waiting[connection]:
                        connection.send(waiting[connection].pop(0))
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


def _received(connection: Connection, job: Job) -> Event | Exception:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        raise TrainingError(
            "a worker process ended unexpectedly (out of memory, or killed); "
            f"resume with: noprop train --resume {job.folder}"
        ) from None


def _first_cause(error: Exception, others: Iterable[Connection], job: Job) -> Exception:
    """What stopped a team, where one process says no more than that another has ended."""
    deadline, left = time.monotonic() + 2, list(others)
    while isinstance(error, PeerLostError) and left and time.monotonic() < deadline:
        for connection in wait(left, timeout=0.1):
            assert isinstance(connection, Connection)
            try:
                event = _received(connection, job)
            except TrainingError as ended:
                return ended
            if isinstance(event, Exception):
                left.remove(connection)
                error = event
    return error


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


def _worker(job: Job, packed: Path, connection: Connection, seat: Seat | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent answers, and asks
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(job.config.train.threads or 1)

    def emit(event: Event) -> None:
        connection.send(event)
        if connection.poll() and not isinstance(event, ENDS):
            if seat is None:
                raise StopRequestedError
            ask()  # all of the team stop after the same update

    try:
        material = Material.unpack(packed)
        with ExitStack() as held:
            held.enter_context(malloc_keeps_memory())
            team = held.enter_context(seat.taken(job.config)) if seat else None
            while (group := connection.recv()) is not None:
                train_group(job, material, group, emit, team)
    except (StopRequestedError, KeyboardInterrupt, EOFError, BrokenPipeError):
        return
    except NoPropError as error:
        connection.send(error)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        connection.send(RunError(f"a worker failed: {text}"))


def end_with_parent(parent: int) -> None:
    """End this process when its parent is gone; for a thread of its own."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
