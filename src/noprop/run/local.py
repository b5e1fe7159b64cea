"""The engine of this machine: worker processes of one thread each, or this process alone."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from noprop.config import RunConfig
from noprop.errors import ConfigError, NoPropError, TrainingError
from noprop.machine import choose_device, core_count
from noprop.run.engine import Engine
from noprop.run.folder import workplace
from noprop.run.guard import check_main_script
from noprop.run.processes import Child, ProcessLostError, start_server, stop, when_asked
from noprop.run.units import COUPLED, groups_of, share_of_groups
from noprop.run.worker import Job, work_on
from noprop.training.events import Emit, Event
from noprop.training.layout import Layout, choose_layout
from noprop.training.mesh import PeerLostError, ProcessMesh, connected_mesh, keep_to_loopback
from noprop.training.signals import ask

__all__ = ["LocalEngine", "local_layout", "local_mesh"]

GRACE = 10.0  # seconds that a worker has to save when it is asked to stop


class LocalEngine(Engine):
    """Processes of this machine, ``train.workers`` of them."""

    name = "local"

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[None]:
        """Start the process that workers are forked from, if there will be several.

        Raises:
            ConfigError: If they cannot import the main script.
        """
        if local_layout(config, groups_of(config)).size > 1:
            check_main_script()
            start_server()
        yield

    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """See :func:`local_layout`."""
        return local_layout(config, groups).size if groups else 1

    def run(self, job: Job, groups: Sequence[str], emit: Emit) -> None:
        """Start workers that each begin at another group; or train in this process, if it is one.

        Processes that share a group are a mesh, and have a fixed share of the groups.
        """
        layout = local_layout(job.config, groups)
        if layout.size == 1:
            work_on(job, groups, emit)
            return
        with workplace(job.folder) as place:
            path, store = place / "data.safetensors", None
            job.write_tensors(path)
            shares = [[*groups[rank:], *groups[:rank]] for rank in range(layout.size)]
            if COUPLED in groups or layout.data > 1:
                shares = [share_of_groups(job.config, layout, r) for r in range(layout.size)]
                store = place / "store"
            _train_on_processes(job, path, shares, layout if store else None, store, emit)


def local_layout(config: RunConfig, groups: Sequence[str]) -> Layout:
    """Return how the processes of this machine share some groups.

    As many as asked for, at most one a unit where none is cut into shards; on a GPU this one alone.
    """
    asked = 1
    if choose_device(config.train.device).type == "cpu":
        asked = config.train.workers or core_count()
    units = config.method.unit_names if COUPLED in groups else groups
    return choose_layout(config, asked, units, shards=config.train.shards or 1)


def _train_on_processes(
    job: Job,
    path: Path,
    shares: Sequence[Sequence[str]],
    layout: Layout | None,
    store: Path | None,
    emit: Emit,
) -> None:
    """Start a worker for each share of the groups, and pass on their events until all have ended.

    Args:
        job: The run.
        path: File with the tensors of the job.
        shares: Names of the groups of each worker.
        layout: Layout of a mesh that the workers are; None if each trains its groups alone.
        store: File by which the processes of the mesh find each other.
        emit: Called with every event.
    """
    small, children = job.without_tensors(), list[Child]()
    try:
        for rank, share in enumerate(shares):
            try:
                children.append(Child(_work, small, path, share, layout, rank, store))
            except TypeError as error:
                raise ConfigError(
                    f"encoder: cannot be sent to worker processes ({error}); give a function of a "
                    "module, or train.workers=1"
                ) from None
        busy = {child.pipe: child for child in children}
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                child = busy[pipe]
                try:
                    event = _received(child, job)
                except NoPropError as error:
                    raise _first_cause(error, set(busy.values()) - {child}, job) from None
                if layout:  # some of a mesh report nothing, but all are ready once one does
                    for other in children:
                        other.heard = True
                if event is None:
                    del busy[pipe]
                else:
                    emit(event)
    finally:
        stop(children, GRACE)


def _received(child: Child, job: Job) -> Event | None:
    try:
        return child.receive()
    except ProcessLostError:
        why = "out of memory, or killed"
        if not child.heard:  # each worker imports the script, which would train in it again
            why += ', or a script trains outside of if __name__ == "__main__":'
        raise TrainingError(
            f"a worker process ended unexpectedly ({why}); "
            f"resume with: noprop train --resume {job.folder}"
        ) from None


def _first_cause(error: NoPropError, others: Iterable[Child], job: Job) -> NoPropError:
    """Return what stopped a mesh, where one process reports only that another has ended."""
    deadline, left = time.monotonic() + 2, {child.pipe: child for child in others}
    while isinstance(error, PeerLostError) and left and time.monotonic() < deadline:
        for pipe in wait(list(left), timeout=0.1):
            assert isinstance(pipe, Connection)
            try:
                if _received(left[pipe], job) is None:
                    del left[pipe]
            except NoPropError as other:
                del left[pipe]
                error = other
    return error


def _work(
    pipe: Connection,
    job: Job,
    path: Path,
    groups: Sequence[str],
    layout: Layout | None,
    rank: int,
    store: Path | None,
) -> None:
    when_asked(pipe, ask)
    job = job.read_tensors(path)
    if layout is None or store is None:
        work_on(job, groups, pipe.send)
        return
    with local_mesh(layout, rank, store, coupled=job.config.method.coupled) as mesh:
        work_on(job, groups, pipe.send, mesh)


@contextmanager
def local_mesh(layout: Layout, rank: int, store: Path, *, coupled: bool) -> Iterator[ProcessMesh]:
    """Connect the processes of a mesh on this machine, which find each other by a file."""
    keep_to_loopback()
    file = FileStore(str(store), layout.size)
    cpu = torch.device("cpu")
    with connected_mesh(layout, rank, file, coupled=coupled, device=cpu) as mesh:
        yield mesh
