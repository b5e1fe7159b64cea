"""Groups of units over local processes of one thread each.

A worker saves a checkpoint when it is asked to stop.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from noprop.build import choose_device, unit_names
from noprop.config import RunConfig
from noprop.errors import ConfigError, NoPropError, TrainingError
from noprop.machine import core_count, malloc_keeps_memory
from noprop.run.folder import workplace
from noprop.run.groups import COUPLED, Job, Material, groups_of, share_of_groups, train_group
from noprop.run.processes import Child, ProcessLostError, start_server, stop
from noprop.training.events import Busy, Emit, Event, Followed, Found, Trained
from noprop.training.layout import Layout, choose_layout
from noprop.training.mesh import ALONE, PeerLostError, ProcessMesh, connected_mesh, keep_to_loopback
from noprop.training.signals import ask

__all__ = ["expect_workers", "local_layout", "threads_of", "train_groups"]

GRACE = 10.0  # seconds that a worker has to save when it is asked to stop

ENDS = Trained | Found | Busy | Followed  # events after which a worker is given its next group


def local_layout(config: RunConfig, groups: Sequence[str]) -> Layout:
    """How the processes of this machine share some groups.

    As many as asked for, at most one a unit where none is cut into shards; on a GPU this one alone.
    """
    asked = 1
    if choose_device(config.train.device).type == "cpu":
        asked = config.train.workers or core_count()
    units = unit_names(config) if COUPLED in groups else groups
    return choose_layout(config, asked, units, shards=config.train.shards or 1)


def expect_workers(config: RunConfig) -> None:
    """Begin to start the workers of a run, if it has several, before its data are loaded."""
    if local_layout(config, groups_of(config)).size > 1:
        start_server()


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
    def taken(self, config: RunConfig) -> Iterator[ProcessMesh]:
        """The team, while its processes are connected."""
        keep_to_loopback()
        store = FileStore(str(self.store), self.layout.size)
        learned, cpu = config.method.learned, torch.device("cpu")
        with connected_mesh(self.layout, self.rank, store, coupled=learned, device=cpu) as team:
            yield team


def _train_on_processes(
    job: Job,
    packed: Path,
    queues: Sequence[list[str]],
    seats: Sequence[Seat | None],
    emit: Emit,
) -> None:
    """Train the groups of the queues, one process for each; two may have the same queue."""
    waiting: dict[Child, list[str]] = {}
    try:
        for queue, seat in zip(queues, seats, strict=True):
            try:
                child = Child(_work, job, packed, seat)
            except TypeError as error:
                raise ConfigError(
                    f"encoder: cannot be sent to worker processes ({error}); give a function of a "
                    "module, or train.workers=1"
                ) from None
            waiting[child] = queue
            child.send(queue.pop(0))
        busy = {child.pipe: child for child in waiting}
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                child = busy[pipe]
                try:
                    event = _received(child, job)
                except NoPropError as error:
                    raise _first_cause(error, set(busy.values()) - {child}, job) from None
                if seats[0]:  # of a team some never say a word, but all have met once one does
                    for other in waiting:
                        other.heard = True
                if not isinstance(event, Followed):
                    emit(event)
                if isinstance(event, ENDS):
                    if waiting[child]:
                        child.send(waiting[child].pop(0))
                    else:
                        child.send(None)
                        del busy[pipe]
    finally:
        stop(waiting, GRACE)


def _received(child: Child, job: Job) -> Event:
    try:
        return child.receive()
    except ProcessLostError:
        raise TrainingError(
            "a worker process ended unexpectedly (out of memory, or killed); "
            f"resume with: noprop train --resume {job.folder}"
        ) from None


def _first_cause(error: NoPropError, others: Iterable[Child], job: Job) -> NoPropError:
    """What stopped a team, where one process says no more than that another has ended."""
    deadline, left = time.monotonic() + 2, {child.pipe: child for child in others}
    while isinstance(error, PeerLostError) and left and time.monotonic() < deadline:
        for pipe in wait(list(left), timeout=0.1):
            assert isinstance(pipe, Connection)
            try:
                _received(left[pipe], job)
            except NoPropError as other:
                del left[pipe]
                error = other
    return error


def _work(connection: Connection, job: Job, packed: Path, seat: Seat | None) -> None:
    torch.set_num_threads(job.config.train.threads or 1)

    def emit(event: Event) -> None:
        connection.send(event)
        if connection.poll() and not isinstance(event, ENDS):
            if seat is None:
                raise KeyboardInterrupt
            ask()  # all of the team stop after the same update

    material = Material.unpack(packed)
    with ExitStack() as held:
        held.enter_context(malloc_keeps_memory())
        team = held.enter_context(seat.taken(job.config)) if seat else ALONE
        while (group := connection.recv()) is not None:
            train_group(job, material, group, emit, team)
