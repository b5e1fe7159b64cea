"""The engine of Slurm: each group is a task of a job array, submitted by submitit.

The tasks work in the run folder, which all machines share, and this process follows them by the
manifests and ``metrics.jsonl`` there. When the time of a task is up, or Slurm takes its machine for
another job, the task saves a checkpoint, and Slurm starts it again. A group that another process
holds is left to it, so a second array for the same run does no harm.
"""

import re
import secrets
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noprop.config import RunConfig
from noprop.errors import ConfigError, NoPropError, TrainingError, import_extra
from noprop.run.engine import Engine
from noprop.run.folder import SLURM_PLACE
from noprop.run.locks import is_free
from noprop.run.metrics import follow
from noprop.run.resolve import thread_count
from noprop.run.sending import sent_by_value
from noprop.run.units import group_lock
from noprop.run.worker import Job, work_on
from noprop.training.events import Emit, print_nothing
from noprop.training.signals import Terminated, answered_between_updates, asked

__all__ = ["SlurmEngine", "minutes_of"]

LOOK = 1.0  # seconds between looks at the tasks
STARTS = 1000  # how often a task is started again when its time is up


class SlurmEngine(Engine):
    """Trains each group as a task of a Slurm job array.

    Args:
        partition: Partition of the tasks; that of the cluster's default unless given.
        time: Time of each task, as Slurm takes it (``90`` minutes, ``1:30:00``, ``1-12``). A task
            that needs longer is started again, and resumes.
        cpus_per_task: CPUs of each task; as many as it has threads unless given.
        gpus_per_task: GPUs of each task.
        mem: Memory of each task, such as ``8G``.
        sbatch: Other options of ``sbatch``, such as ``{"account": "x"}``.
        no_wait: Whether :meth:`run` returns when the tasks are submitted.
        cluster: ``slurm``, or ``local`` for processes of this machine in its place.

    Attributes:
        submitted: Numbers of the jobs that were submitted.

    Raises:
        ConfigError: If a value is wrong.
    """

    name = "slurm"
    at_once = True

    def __init__(
        self,
        *,
        partition: str | None = None,
        time: str | int = 60,
        cpus_per_task: int | None = None,
        gpus_per_task: int | None = None,
        mem: str | None = None,
        sbatch: Mapping[str, Any] | None = None,
        no_wait: bool = False,
        cluster: str = "slurm",
    ):
        self.cpus, self.waits, self.cluster = cpus_per_task, not no_wait, cluster
        self.minutes = minutes_of(time)
        given = {"partition": partition, "gpus_per_task": gpus_per_task, "mem": mem}
        self.parameters = {name: value for name, value in given.items() if value is not None}
        self.sbatch = {"requeue": True, **(sbatch or {})}
        self.submitted: list[str] = []
        self.stopping = False

    def opened(self, config: RunConfig) -> AbstractContextManager[object]:
        """Check that jobs can be submitted here.

        Raises:
            ConfigError: If submitit is not installed, or Slurm is not available.
        """
        _submitit()
        if self.cluster == "slurm" and not shutil.which("sbatch"):
            raise ConfigError("engine: there is no Slurm here (no command sbatch)")
        return nullcontext()

    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """Return the number of tasks; how many run at the same time is up to Slurm."""
        return len(groups)

    def run(self, job: Job, groups: Sequence[str], emit: Emit) -> None:
        """Submit an array of one task for each group, and wait for the tasks.

        Ctrl-C stops the waiting alone.
        """
        place = job.folder.resolve() / SLURM_PLACE / secrets.token_hex(4)
        place.mkdir(parents=True)
        path = place / "data.safetensors"
        job.write_tensors(path)
        small = replace(job.without_tensors(), folder=job.folder.resolve())
        new_events = follow(job.folder)
        tasks = self._submit(place, small, [_Task(small, path, group) for group in groups])
        left = dict(zip(groups, tasks, strict=True)) if self.waits else {}
        while left:
            if self.stopping:
                raise KeyboardInterrupt
            time.sleep(LOOK)
            ended = [group for group, task in left.items() if task.done()]
            for event in new_events():
                emit(event)
            for group in ended:
                if error := _error_of(group, left[group], job.folder):
                    for other in left.values():
                        other.cancel(check=False)
                    raise error
                if is_free(group_lock(job.folder, group)):  # else another process trains it
                    del left[group]
        if self.waits:
            shutil.rmtree(place, ignore_errors=True)

    def _submit(self, place: Path, job: Job, tasks: Sequence["_Task"]) -> list[Any]:
        submitit = _submitit()
        try:
            if self.cluster == "slurm":
                executor = submitit.SlurmExecutor(place, max_num_timeout=STARTS)
                executor.update_parameters(
                    job_name=f"noprop-{job.folder.name}",
                    time=self.minutes,
                    cpus_per_task=self.cpus or thread_count(job.config),
                    additional_parameters=self.sbatch,
                    **self.parameters,
                )
            else:
                executor = submitit.LocalExecutor(place, max_num_timeout=STARTS)
                executor.update_parameters(timeout_min=self.minutes, signal_delay_s=1)
            with sent_by_value(job.encoder, submitit.core.utils.cloudpickle), executor.batch():
                submitted = [executor.submit(task) for task in tasks]
        except Exception as error:  # sbatch's own words, such as an invalid partition
            words = " ".join(str(error).split())[:300]
            raise ConfigError(f"engine: the job could not be submitted: {words}") from None
        self.submitted += dict.fromkeys(task.job_id.partition("_")[0] for task in submitted)
        return submitted

    def stop(self) -> None:
        """Have :meth:`run` stop waiting in other threads; the tasks continue."""
        self.stopping = True


@dataclass(frozen=True)
class _Task:
    """The training of one group, as submitit sends it."""

    job: Job
    path: Path
    group: str

    def __call__(self) -> NoPropError | None:
        """Train the group; return what the user must correct.

        Slurm sends SIGTERM some time before it kills a task, and the signal of submitit when it is
        to be started again. Both save a checkpoint; after the first, the training resumes.
        """
        user_signal = _submitit().JobEnvironment()._usr_sig()
        start_again, requests = signal.getsignal(user_signal), []

        def request(number: int, frame: Any) -> None:
            requests.append(number)
            if not asked():
                signal.raise_signal(signal.SIGINT)

        job = self.job.read_tensors(self.path)
        with answered_between_updates():
            signal.signal(user_signal, request)
            while True:
                try:
                    work_on(job, [self.group], print_nothing)
                    return None
                except NoPropError as error:
                    return error
                except KeyboardInterrupt as stop:
                    if requests and callable(start_again):
                        start_again(user_signal, None)  # ends this process
                    if not isinstance(stop, Terminated):
                        raise

    def checkpoint(self) -> Any:
        """Return what is submitted when the task is started again, which submitit calls."""
        return _submitit().helpers.DelayedSubmission(self)


def _error_of(group: str, task: Any, folder: Path) -> NoPropError | None:
    """Return what stopped a task that has ended."""
    if task.exception() is None:
        return task.result()
    return TrainingError(
        f"{group}: its task {task.job_id} ended unexpectedly, see {task.paths.stderr}; its last "
        f"checkpoint is kept, resume with: noprop train --resume {folder}"
    )


def minutes_of(time: str | int) -> int:
    """Return the minutes of a time as Slurm takes it, rounded up.

    Args:
        time: ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``,
            ``days-hours:minutes`` or ``days-hours:minutes:seconds``.

    Raises:
        ConfigError: If it is none of these, or 0.
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", str(time))
    if match:
        days, first, second, third = (int(part) if part else None for part in match.groups())
        if days is not None or third is not None:
            seconds = ((days or 0) * 24 + (first or 0)) * 3600 + (second or 0) * 60 + (third or 0)
        else:
            seconds = (first or 0) * 60 + (second or 0)
        if seconds:
            return -(-seconds // 60)
    raise ConfigError(f"time: wanted a time such as 90, 1:30:00 or 1-12 (days-hours), got {time!r}")


def _submitit() -> Any:
    return import_extra("submitit", "slurm", "engine slurm needs")
