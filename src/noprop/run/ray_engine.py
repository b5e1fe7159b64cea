"""The engine of Ray: each group is a task in Ray's queue, over all the machines it has.

Ray places each task where its resources are free, on machines that join late too, and starts it
again elsewhere when its worker or machine is lost; the task resumes from the group's checkpoint.
What a driver must remember is kept here: the events that it has passed on already, and the tasks
that it has dropped.
"""

import hashlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from noprop.config import RunConfig, to_toml
from noprop.errors import ConfigError, TrainingError
from noprop.machine import core_count
from noprop.run.engine import Engine
from noprop.run.locks import hold
from noprop.run.metrics import recorder
from noprop.run.ray_cluster import connected, reason_of, room, the_ray
from noprop.run.ray_tasks import Message, Outcome, train_task
from noprop.run.resolve import thread_count
from noprop.run.sending import sent_by_value
from noprop.run.storage import RunStorage
from noprop.run.units import group_folder, group_lock
from noprop.run.worker import Job
from noprop.training.events import Emit, Restarted
from noprop.training.signals import named

__all__ = ["RayEngine"]

LOOK = 0.2  # seconds between looks at the mail
# Ray's errors after the last retry, and what was lost.
LOSSES = {
    "WorkerCrashedError": "killed, or out of memory",
    "OutOfMemoryError": "out of memory",
    "NodeDiedError": "with its machine",
}
GRACE = 30.0  # seconds that tasks have to save a checkpoint when they are stopped


class RayEngine(Engine):
    """Trains each group as a task of Ray.

    Args:
        address: Address of a cluster, ``auto``, ``host:port`` or ``ray://host:port``; a Ray of this
            machine unless given.
        cpus: CPUs that a unit takes, parts of one allowed; as many as it has threads unless given,
            and 1 next to a GPU.
        gpus: GPUs that a unit takes, parts of one allowed.
        storage: A URL of fsspec for checkpoints, where machines share no folder. Each run has a
            place of its name there, and its trained units are copied into its folder.
        retries: How often a unit whose worker was lost is started again.

    Raises:
        ConfigError: If a number is out of range.
    """

    name = "ray"
    at_once = True

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
        self.tasks: Tasks | None = None

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[None]:
        """Connect to Ray; a Ray of this machine has ``train.workers`` tasks at a time."""
        if self.tasks:
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
            self.tasks = Tasks(self.retries)
            try:
                yield
            finally:
                self.tasks.close()
                self.tasks = None

    def cpus_of(self, config: RunConfig) -> float:
        """Return the CPUs that a unit of a run takes."""
        if self.cpus is not None:
            return self.cpus
        return 1.0 if self.gpus else float(thread_count(config))

    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """Return the number of tasks that the cluster has room for; 0 while there is none."""
        return min(len(groups), room(self.cpus_of(config), self.gpus))

    def run(self, job: Job, groups: Sequence[str], emit: Emit) -> None:
        """Have Ray train all groups; they wait in its queue until there is room."""
        assert self.tasks, "called inside opened"
        storage = self.storage and RunStorage(
            f"{self.storage.rstrip('/')}/{job.folder.resolve().name}"
        )
        if storage:  # checkpoints that are further in the folder go to the storage first
            storage.begin(to_toml(job.config).encode())
            for group in groups:
                storage.unit(group).advance(group_folder(job.folder, group))
        resources = {"num_cpus": self.cpus_of(job.config), "num_gpus": self.gpus}
        with closing(self.tasks.train(job, groups, resources, storage or None, emit)) as ended:
            for group in ended:
                if storage:
                    _fetch(storage, job.folder, group)

    def stop(self) -> None:
        """See :meth:`Engine.stop`."""
        if self.tasks:
            self.tasks.stopping = True


def _fetch(storage: RunStorage, folder: Path, group: str) -> None:
    """Copy a trained unit into the folder of its run."""
    lock = group_lock(folder, group)
    with hold(lock, f"{group}: another process is training it", patience=2.0):
        storage.unit(group).fetch(lock.parent)


@dataclass
class _Task:
    """A task of Ray: the group that it trains, and what is known of it.

    Attributes:
        attempts: Names of its starts, in order.
        seen: The messages that were passed on, by attempt and number.
        over: Whether nothing more of it counts.
    """

    job: Job
    group: str
    emit: Emit
    attempts: list[str] = field(default_factory=list)
    seen: set[tuple[str, int]] = field(default_factory=set)
    over: bool = False


class Tasks:
    """The tasks of this driver; each thread trains the groups of one run.

    Args:
        retries: How often a task whose worker was lost is started again.

    Attributes:
        stopping: Whether all threads are to stop their tasks.
    """

    def __init__(self, retries: int):
        from ray.util.queue import Queue

        self.ray, self.retries, self.stopping = the_ray(), retries, False
        here = self.ray.get_runtime_context().get_node_id()
        # Next to the driver, so that the events do not go with a machine that is taken away.
        place = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        self.mail: Any = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": place})
        self.all: list[_Task] = []
        self.stored: dict[bytes, Any] = {}  # tensors in Ray's object store, once for all runs
        self.inboxes: dict[int, list[Message]] = defaultdict(list)  # by number of the task
        self.lock = threading.RLock()

    def close(self) -> None:
        """End what passes events on."""
        with suppress(Exception):
            self.mail.shutdown(force=True)

    def train(
        self,
        job: Job,
        groups: Sequence[str],
        resources: dict[str, Any],
        storage: RunStorage | None,
        emit: Emit,
    ) -> Generator[str, None, None]:
        """Give groups to Ray's queue, and yield each when its task has ended.

        Args:
            job: The run.
            groups: Names of the groups.
            resources: Resources that each group takes, as options of a task.
            storage: Storage of the run, where its folder is not shared.
            emit: Called with every event, after it is written to ``metrics.jsonl``.

        Raises:
            NoPropError: What stopped a group; the others are stopped with a checkpoint each.
        """
        pending: dict[Any, int] = {}
        try:
            with self.lock, sent_by_value(job.encoder, self.ray.cloudpickle):
                self._submit(job, groups, resources, storage, recorder(job.folder, emit), pending)
            while pending:
                with named():
                    done, _ = self.ray.wait(list(pending), timeout=LOOK)
                    self._deliver(pending.values())
                if self.stopping:
                    raise KeyboardInterrupt
                for ref in done:
                    number = pending.pop(ref)
                    self._finish(ref, number)
                    yield self.all[number].group
        finally:
            self._stop(pending)

    def _submit(
        self,
        job: Job,
        groups: Sequence[str],
        resources: dict[str, Any],
        storage: RunStorage | None,
        record: Emit,
        pending: dict[Any, int],
    ) -> None:
        tensors = [self._stored(tensor) for tensor in job.tensors]
        options = {"max_retries": self.retries, "retry_exceptions": False, **resources}
        remote = self.ray.remote(**options)(train_task)
        small = replace(job.without_tensors(), folder=job.folder.resolve())
        for group in groups:
            number, place = len(self.all), storage.unit(group) if storage else None
            self.all.append(_Task(job, group, record))
            task = remote.options(name=f"{small.folder.name}/{group}")
            gpus = resources["num_gpus"]
            pending[task.remote(small, group, number, gpus, place, self.mail, *tensors)] = number

    def _stored(self, tensor: Tensor) -> Any:
        array = tensor.contiguous().cpu().numpy()
        about = f"{array.dtype} {array.shape}".encode()
        key = hashlib.blake2b(array.data, key=hashlib.blake2b(about, digest_size=16).digest())
        if (digest := key.digest()) not in self.stored:
            self.stored[digest] = self.ray.put(array)
        return self.stored[digest]

    def _finish(self, ref: Any, number: int) -> None:
        """Pass on what a task returned, and raise what stopped it."""
        task = self.all[number]
        try:
            outcome: Outcome = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:  # outside of what a task can catch
            raise TrainingError(f"{task.group}: a worker failed: {reason_of(error)}") from None
        except self.ray.exceptions.RayError as error:
            kind = type(error).__name__
            raise self._gone(task, kind if kind in LOSSES else reason_of(error)) from None
        messages, error = outcome
        for message in messages:
            self._take(message)
        task.over = True
        if error is not None:
            raise error

    def _gone(self, task: _Task, error: str) -> TrainingError:
        """Return the error of a task that Ray gave up."""
        times = f"{self.retries + 1} times" if self.retries else "once"
        how = f"its worker was lost {times} ({LOSSES[error]})" if error in LOSSES else error
        return TrainingError(
            f"{task.group}: {how}; its last checkpoint is kept, resume with: noprop train "
            f"--resume {task.job.folder}"
        )

    def _deliver(self, numbers: Any) -> None:
        """Pass on new events of some tasks; mail that is late or lost is not waited for."""
        with self.lock, suppress(self.ray.exceptions.RayError):
            if count := self.ray.get(self.mail.actor.qsize.remote(), timeout=5):
                batch = self.mail.actor.get_nowait_batch.remote(count)
                for message in self.ray.get(batch, timeout=5):
                    self.inboxes[message.task].append(message)
        for number in list(numbers):
            for message in self.inboxes.pop(number, []):
                self._take(message)

    def _take(self, message: Message) -> None:
        task = self.all[message.task]
        if task.over or (message.attempt, message.number) in task.seen:
            return
        task.seen.add((message.attempt, message.number))
        if message.event is not None:
            task.emit(message.event)
            return
        task.attempts.append(message.attempt)
        if len(task.attempts) > self.retries + 1:  # Ray's own count leaves out lack of memory
            raise self._gone(task, "OutOfMemoryError")
        if len(task.attempts) > 1:
            task.emit(Restarted(task.group, len(task.attempts), message.node))

    def _stop(self, pending: dict[Any, int]) -> None:
        """Stop the tasks that are left, and wait while they save their checkpoints."""
        left, deadline = list(pending), time.monotonic() + GRACE
        for number in pending.values():
            self.all[number].over = True
        self._cancel(left)
        try:
            with suppress(self.ray.exceptions.RayError):
                while left and time.monotonic() < deadline:
                    _, left = self.ray.wait(left, timeout=LOOK)
        finally:
            # None that has just ended: Ray 2.60 would end this process for being asked so.
            self._cancel(left, force=True)

    def _cancel(self, refs: Sequence[Any], *, force: bool = False) -> None:
        for ref in refs:
            with suppress(Exception):  # Ray is gone itself
                self.ray.cancel(ref, force=force)
