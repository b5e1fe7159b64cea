"""The training of one group as a task of Ray: what runs on a worker, and what it sends.

A worker has no state that matters: a group goes on from its last checkpoint wherever Ray starts the
task again. Events go to the driver as they happen, and training waits for none. Those that count,
which are all but mere progress, come with the task's result once more, so that none is lost with
the actor that passes them on.
"""

import getpass
import os
import secrets
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from noprop.config import replace as replace_fields
from noprop.data import Examples
from noprop.errors import ConfigError, NoPropError, RunError
from noprop.files import check_folder, make_own_folder
from noprop.machine import malloc_keeps_memory
from noprop.run.folder import workplace
from noprop.run.groups import Job, Material, group_folder, train_group
from noprop.run.storage import UnitStorage
from noprop.training.events import Event, Progress
from noprop.training.signals import Terminated, answered_between_updates

__all__ = ["Attempt", "Outcome", "Parcel", "arrays_of", "train_task"]


@dataclass(frozen=True)
class Attempt(Event):
    """A task has started on a worker; the driver keeps it to itself.

    Attributes:
        process: Number of the worker's process.
        node: Name of its machine.
    """

    process: int
    node: str


@dataclass(frozen=True)
class Parcel:
    """An event on its way.

    Attributes:
        task: number of the task, as the driver counts them.
        attempt: name of this start of the task.
        number: of the event in this attempt, from 0.
        event: itself.
    """

    task: int
    attempt: str
    number: int
    event: Event


@dataclass(frozen=True)
class Outcome:
    """What a task returns: the events that count, and what a user must mend, if anything."""

    parcels: list[Parcel] = field(default_factory=list)
    error: NoPropError | None = None


class Reporter:
    """Sends the events of one attempt, and keeps those that count."""

    def __init__(self, mail: Any, task: int):
        self.mail, self.task, self.attempt = mail, task, secrets.token_hex(8)
        self.number = 0
        self.kept: list[Parcel] = []
        self.last: Any = None

    def __call__(self, event: Event) -> None:
        """Send an event, and wait for nothing: the driver may be slow, or the mail gone."""
        parcel = Parcel(self.task, self.attempt, self.number, event)
        self.number += 1
        if not isinstance(event, Progress):
            self.kept.append(parcel)
        with suppress(Exception):
            self.last = self.mail.actor.put_nowait.remote(parcel)

    def flush(self) -> None:
        """Wait a moment for the events to be there: not all come with a result."""
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
    """Train one group to its end, from its last checkpoint.

    Args:
        job: the run.
        group: of the run.
        task: its number.
        gpus: that Ray gave it, or parts of one.
        storage: where its checkpoints are kept; in the folder of the run, which all machines share,
            unless given.
        mail: a ``ray.util.queue.Queue`` to the driver.
        arrays: as :func:`arrays_of` makes them, read from the object store.

    Returns:
        What came of it. A user's mistake is returned, for Ray would start again what raises it.
    """
    report = Reporter(mail, task)
    report(Attempt(os.getpid(), os.uname().nodename))
    report.flush()  # or a worker that is soon lost would not have been there
    torch.set_num_threads(job.config.train.threads or 1)
    try:
        with answered_between_updates(), malloc_keeps_memory():
            job, material = _on_given_device(job, gpus), _material(arrays)
            if storage is None:
                _train_shared(job, group, material, report)
            else:
                _train_stored(job, group, material, report, storage)
    except Terminated:  # the machine is taken away: it is saved, and goes on elsewhere
        os._exit(1)
    except NoPropError as error:
        return Outcome(report.kept, error)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome(report.kept, RunError(f"{group}: a worker failed: {text}"))
    report.flush()
    return Outcome(report.kept)


def _train_shared(job: Job, group: str, material: Material, report: Reporter) -> None:
    if not (job.folder / "config.toml").is_file():
        raise RunError(
            f"{group}: {job.folder} is not to be seen on {os.uname().nodename}; have the run in a "
            "folder that all machines share, or give --storage URL"
        )
    check_folder(job.folder)
    train_group(job, material, group, report)


def _train_stored(
    job: Job, group: str, material: Material, report: Reporter, storage: UnitStorage
) -> None:
    """In a folder of this machine; those that lost workers have left are deleted first."""
    own = Path(tempfile.gettempdir()) / f"noprop-{_user()}"
    make_own_folder(own)
    places = own / job.fingerprint
    check_folder(places)
    with workplace(places) as place:
        here = group_folder(place, group)
        try:
            storage.fetch(here)
            job = replace(job, folder=place)
            train_group(job, material, group, report, saved=lambda: storage.send(here))
        except NoPropError as error:  # the folder is gone when a person reads of it
            raise type(error)(str(error).replace(str(here), storage.url)) from None


def _user() -> str:
    """The name of the user, or the number of one without a name, as containers have them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _on_given_device(job: Job, gpus: float) -> Job:
    """Without a GPU of its own a task keeps off those of others, which Ray does not hide."""
    device = job.config.train.device
    if gpus or device == "cpu":
        return job
    if device != "auto":
        raise ConfigError(f"train.device={device}: a unit has no GPU; give --gpus-per-unit")
    return replace(job, config=replace_fields(job.config, {"train.device": "cpu"}))


def arrays_of(material: Material) -> list[NDArray[Any]]:
    """The material as arrays, which the processes of a machine read in place."""
    parts = (material.train, material.validation)
    tensors = [tensor for part in parts for tensor in (part.x, part.y)]
    return [t.contiguous().cpu().numpy() for t in (*tensors, material.embedding)]


def _material(arrays: Sequence[NDArray[Any]]) -> Material:
    with warnings.catch_warnings():  # training writes to none of them
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        train_x, train_y, held_x, held_y, embedding = (torch.from_numpy(a) for a in arrays)
    return Material(Examples(train_x, train_y), Examples(held_x, held_y), embedding)
