"""Groups of runs as tasks of Ray: one queue, which is Ray's, over all the machines it has.

Ray places each task where its resources are free, on machines that join late too, and starts it
again elsewhere when its worker or machine is lost; the task goes on from the group's checkpoint.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from noprop.config import RunConfig, to_toml
from noprop.errors import ConfigError, NoPropError
from noprop.machine import core_count
from noprop.run.engines import Ended, Engine
from noprop.run.groups import (
    Job,
    Work,
    group_folder,
    group_lock,
    thread_count,
)
from noprop.run.locks import hold
from noprop.run.ray_cluster import connected, room
from noprop.run.ray_queue import Tasks
from noprop.run.storage import RunStorage

__all__ = ["RayEngine"]


class RayEngine(Engine):
    """Trains each group as a task of Ray.

    Args:
        address: of a cluster, ``auto``, ``host:port`` or ``ray://host:port``; a Ray of this machine
            unless given.
        cpus: that a unit takes, parts of one allowed; as many as it has threads unless given, and
            1 beside a GPU.
        gpus: that a unit takes, parts of one allowed.
        storage: a URL of fsspec for checkpoints, where machines share no folder; each run has a
            place of its name there, and its trained units are brought into its folder.
        retries: how often a unit whose worker was lost is started again.

    Raises:
        ConfigError: If a number is out of range.
    """

    name = "ray"

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float | int | None = None,
        gpus: float | int = 0,
        storage: str | None = None,
        retries: int = 10,
    ):
        for name, value in {"cpus": cpus, "gpus": gpus}.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: wanted a number of at least 0, got {value}")
            if value is not None and value > 1 and value != int(value):
                raise ConfigError(f"{name}: above 1 Ray gives whole ones alone, got {value}")
        if cpus == 0 and gpus == 0:
            raise ConfigError("cpus: a unit must take something of a machine, got 0 of each")
        if retries < 0:
            raise ConfigError(f"retries: wanted a number of at least 0, got {retries}")
        if storage is not None:
            RunStorage(storage).check()
        self.address, self.gpus = address, float(gpus)
        self.cpus = None if cpus is None else float(cpus)
        self.storage, self.retries = storage, retries
        self.depth = 0

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[None]:
        """Connected to Ray; a Ray of this machine has ``train.workers`` tasks at a time."""
        if self.depth:
            yield
            return
        cpus = self.cpus_of(config)
        cores = math.ceil(config.train.workers * cpus) or core_count()
        with connected(self.address, cores) as started:
            if started and not room(cpus, self.gpus):
                raise ConfigError(
                    f"cpus, gpus: a unit takes {cpus:g} and {self.gpus:g}, which this machine "
                    f"does not have ({cores} cores)"
                )
            self.depth += 1
            try:
                yield
            finally:
                self.depth -= 1

    def cpus_of(self, config: RunConfig) -> float:
        """CPUs that a unit of a run takes."""
        if self.cpus is not None:
            return self.cpus
        return 1.0 if self.gpus else float(thread_count(config))

    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """Tasks that the machines of the cluster have room for; 0 while there is none."""
        return min(len(groups), room(self.cpus_of(config), self.gpus))

    def train_many(self, works: Iterable[Work]) -> Ended:
        """All groups of all runs at once; Ray has them wait until there is room."""
        left: dict[int, set[str]] = {}
        given: dict[int, Work] = {}
        tasks = Tasks(self.retries)
        try:
            for number, work in enumerate(works):
                error = self._submit(tasks, number, work)
                if error is None and work.groups:
                    given[number], left[number] = work, set(work.groups)
                else:
                    yield work, error
            for number, group, error in tasks.ended():
                if number not in given:  # one of its others was stopped before
                    continue
                error = error or self._fetch(given[number].job, group)
                left[number].discard(group)
                if error is not None:
                    tasks.cancel(number)
                if error is not None or not left[number]:
                    yield given.pop(number), error
        finally:
            tasks.stop()

    def _submit(self, tasks: Tasks, number: int, work: Work) -> NoPropError | None:
        """Give a work to Ray; checkpoints that are further in its folder go to the storage first.

        Returns:
            What is wrong with the storage.
        """
        storage = self._storage_of(work.job)
        try:
            if storage and work.groups:
                storage.begin(to_toml(work.job.config).encode())
                for group in work.groups:
                    storage.unit(group).advance(group_folder(work.job.folder, group))
        except NoPropError as error:
            return error
        resources = {"num_cpus": self.cpus_of(work.job.config), "num_gpus": self.gpus}
        tasks.submit(number, work, resources, storage)
        return None

    def _fetch(self, job: Job, group: str) -> NoPropError | None:
        """Bring a trained unit into the folder of its run."""
        if storage := self._storage_of(job):
            lock = group_lock(job.folder, group)
            try:
                with hold(lock, f"{group}: another process is training it", patience=2.0):
                    storage.unit(group).fetch(lock.parent)
            except NoPropError as error:
                return error
        return None

    def _storage_of(self, job: Job) -> RunStorage | None:
        if self.storage is None:
            return None
        return RunStorage(f"{self.storage.rstrip('/')}/{job.folder.resolve().name}")
