"""The training of one group as a task of Ray: what runs on a worker, and what it sends.

A worker has no state that matters: a group resumes from its last checkpoint wherever Ray starts the
task again. Events go to the driver as they happen, and training waits for none. All but mere
progress come once more with the result of the task, so that none is lost with the actor that passes
them on.
"""

import getpass
import os
import secrets
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from noprop.config import replace as replace_fields
from noprop.errors import ConfigError, NoPropError, RunError
from noprop.files import check_folder, make_own_folder
from noprop.machine import malloc_keeps_memory
from noprop.run.folder import workplace
from noprop.run.storage import UnitStorage
from noprop.run.units import group_folder
from noprop.run.worker import Job, train_group
from noprop.training.events import Emit, Event, Progress
from noprop.training.signals import Terminated, answered_between_updates

__all__ = ["Message", "Outcome", "train_task"]


@dataclass(frozen=True)
class Message:
    """An event on its way to the driver.

    Attributes:
        task: Number of the task, as the driver counts them.
        attempt: Name of this start of the task.
        number: Number of the message in this attempt, from 0.
        event: The event; None says that the attempt begins.
        node: Name of the machine.
    """

    task: int
    attempt: str
    number: int
    event: Event | None
    node: str


Outcome = tuple[list[Message], NoPropError | None]  # what counts, and what the user must correct


class Reporter:
    """Sends the events of one attempt, and keeps those that count."""

    def __init__(self, mail: Any, task: int):
        self.mail, self.task, self.attempt = mail, task, secrets.token_hex(8)
        self.number = 0
        self.kept: list[Message] = []
        self.last: Any = None

    def __call__(self, event: Event | None) -> None:
        """Send an event without waiting: the driver may be slow, or the mail gone."""
        node = os.uname().nodename
        message = Message(self.task, self.attempt, self.number, event, node)
        self.number += 1
        if not isinstance(event, Progress):
            self.kept.append(message)
        with suppress(Exception):
            self.last = self.mail.actor.put_nowait.remote(message)

    def flush(self) -> None:
        """Wait a moment until the events have arrived: mere progress comes with no result."""
        import ray

        with suppress(Exception):
            ray.get(self.last, timeout=5)


def train_task(
    job: Job,
    group: str,
    task: int,
    gpus: float,
    storage: UnitStorage | None,
    mail: Any,
    *arrays: NDArray[Any],
) -> Outcome:
    """Train one group to its end, from its last checkpoint, unless another process holds it.

    Args:
        job: The run, without its tensors.
        group: Name of the group.
        task: Number of the task.
        gpus: GPUs that Ray gave to the task, or parts of one.
        storage: Where the checkpoints are kept; in the folder of the run, which all machines share,
            unless given.
        mail: A ``ray.util.queue.Queue`` to the driver.
        arrays: Tensors of the job, read from the object store in place.

    Returns:
        The events that count, and the user's mistake: if it were raised, Ray would try again.
    """
    report = Reporter(mail, task)
    report(None)
    report.flush()  # or a worker that is soon lost would not have been there
    torch.set_num_threads(job.config.train.threads or 1)
    try:
        with answered_between_updates(), malloc_keeps_memory():
            job = _on_given_device(job.with_tensors(_tensors(arrays)), gpus)
            if storage is None:
                _train_shared(job, group, report)
            else:
                _train_stored(job, group, report, storage)
    except Terminated:  # the machine is taken away: the group is saved, and resumes elsewhere
        os._exit(1)
    except NoPropError as error:
        return report.kept, error
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return report.kept, RunError(f"{group}: a worker failed: {text}")
    report.flush()
    return report.kept, None


def _train_shared(job: Job, group: str, emit: Emit) -> None:
    if not (job.folder / "config.toml").is_file():
        raise RunError(
            f"{group}: {job.folder} is not to be seen on {os.uname().nodename}; have the run in a "
            "folder that all machines share, or give --storage URL"
        )
    check_folder(job.folder)
    train_group(job, group, emit)


def _train_stored(job: Job, group: str, emit: Emit, storage: UnitStorage) -> None:
    """Train in a folder of this machine; those that lost workers have left are deleted first."""
    own = Path(tempfile.gettempdir()) / f"noprop-{_user()}"
    make_own_folder(own)
    places = own / job.fingerprint
    check_folder(places)
    with workplace(places) as place:
        here = group_folder(place, group)
        try:
            storage.fetch(here)
            train_group(replace(job, folder=place), group, emit, saved=lambda: storage.send(here))
        except NoPropError as error:  # the folder is gone when a person reads of it
            raise type(error)(str(error).replace(str(here), storage.url)) from None


def _user() -> str:
    """Return the name of the user, or the number of one without a name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _on_given_device(job: Job, gpus: float) -> Job:
    """Keep a task without a GPU of its own off those of others, which Ray does not hide."""
    device = job.config.train.device
    if gpus or device == "cpu":
        return job
    if device != "auto":
        raise ConfigError(f"train.device={device}: a unit has no GPU; give --gpus-per-unit")
    return replace(job, config=replace_fields(job.config, {"train.device": "cpu"}))


def _tensors(arrays: Sequence[NDArray[Any]]) -> list[torch.Tensor]:
    with warnings.catch_warnings():  # training writes to none of them
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return [torch.from_numpy(array) for array in arrays]
