"""Training the groups of a run that no other process has in hand, and putting them together."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from noprop.build import RunData
from noprop.config import RunConfig
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.fingerprint import fingerprint
from noprop.model import Model
from noprop.run.assembly import assemble_model, is_finished
from noprop.run.engines import Engine, LocalEngine
from noprop.run.folder import starting_embedding
from noprop.run.groups import Job, Material, Work, group_lock, groups_of
from noprop.run.locks import is_free
from noprop.run.metrics import recorder
from noprop.run.units import condensed, survey
from noprop.training.events import Busy, Emit, Event, Found, Started

__all__ = ["Training", "train_run", "train_units"]

# Seconds that a process which finds a group locked, and has nothing else to do, waits for it: so
# long a worker may outlive a parent that was killed.
PATIENCE = 2.0


def train_run(
    folder: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit,
    factory: EncoderFactory | None = None,
) -> Model:
    """Train what is not trained yet, and put the finished model together.

    Args:
        folder: the run.
        config: its configuration; ``train.workers`` may differ from an earlier call.
        data: its data.
        emit: called with every event, after it is written to ``metrics.jsonl``.
        factory: a user's own encoder.

    Raises:
        RunError: If other processes are training some units, which is said when all others are
            trained; or if the folder cannot be used.
    """
    train_units(folder, config, data, emit, factory)
    return assemble_model(folder, config, data, factory)


def train_units(
    folder: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit,
    factory: EncoderFactory | None = None,
    groups: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> None:
    """Train those of some groups that are not trained yet, all of them unless given.

    Any number of processes may do so in one folder. Each takes the groups that are free; one that
    another has in hand is tried again when the rest is trained.

    Args:
        folder: the run.
        config: its configuration.
        data: its data.
        emit: called with every event, after it is written to ``metrics.jsonl``.
        factory: a user's own encoder.
        groups: their names.
        engine: where they are trained; on processes of this machine unless given.

    Raises:
        RunError: If other processes are still training some of them then.
    """
    engine = engine or LocalEngine()
    with engine.opened(config):
        training = Training(folder, config, data, emit, factory, groups)
        training.begin(engine)
        deadline = time.monotonic() + PATIENCE
        while training.work.groups:
            engine.train(training.work)
            training.look_again(deadline)


class Training:
    """The training of some groups of a run by this process: what is left of it.

    Attributes:
        work: the groups that are not trained yet, for an engine.

    Raises:
        RunError: If a unit was trained with other settings or other data.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        data: RunData,
        emit: Emit,
        factory: EncoderFactory | None = None,
        groups: Sequence[str] | None = None,
    ):
        mark = fingerprint(config, data.train)
        survey(folder, config, mark)  # no unit is trained beside those of another training
        embedding = starting_embedding(folder, config, data)
        self.folder, self.mark, self.record = folder, mark, recorder(folder, emit)
        self.busy: list[str] = []
        job = Job(config, data.task, folder, mark, factory)
        material = Material(data.train, data.validation, embedding.weight.detach())
        left = self._unfinished(groups_of(config) if groups is None else groups)
        self.work = Work(job, material, left, self._listen)

    def begin(self, engine: Engine) -> None:
        """Say what is left, and how many are trained at the same time."""
        left = list(self.work.groups)
        workers = engine.workers(self.work.job.config, left)
        where = "" if engine.name == "local" else engine.name
        self.record(Started(left, workers, engine=where))

    def look_again(self, deadline: float) -> None:
        """After training: what is left are groups that other processes had in hand and let go of.

        Args:
            deadline: on the monotonic clock; so long one of them is waited for.

        Raises:
            RunError: If none is free by then.
        """
        if not _wait_for_one(self.folder, self.busy, deadline):
            raise _elsewhere(self.folder, self.busy)
        left = self._unfinished(self.busy)
        self.busy.clear()
        self.work = dataclasses.replace(self.work, groups=left)

    def _listen(self, event: Event) -> None:
        if isinstance(event, Busy):
            self.busy.append(event.group)
        else:
            self.record(event)

    def _unfinished(self, among: Sequence[str]) -> list[str]:
        left = []
        for group in among:
            if is_finished(self.folder, group, self.mark):
                self.record(Found(group))
            else:
                left.append(group)
        return left


def _wait_for_one(folder: Path, groups: Sequence[str], deadline: float) -> bool:
    """Whether one of these, where there are any, is free before the time is up."""
    while groups and not any(is_free(group_lock(folder, group)) for group in groups):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _elsewhere(folder: Path, groups: Sequence[str]) -> RunError:
    some = condensed(groups)
    return RunError(
        f"{folder}: another process is training {some}, nothing else is left to do here; when all "
        f"units are trained: noprop assemble {folder}"
    )
