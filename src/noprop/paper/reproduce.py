"""Reproduction of experiments: train the cells that are not done, then write tables and figures."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from noprop.errors import ConfigError, NoPropError
from noprop.machine import core_count
from noprop.paper.cells import EXPERIMENTS, Cell, all_cells, select
from noprop.paper.estimate import measure_pace, rough_work, seconds_of
from noprop.paper.measure import Job
from noprop.paper.pages import write_pages
from noprop.paper.queue import GRACE, run_jobs
from noprop.paper.records import add_record, key_of, read_records
from noprop.paper.scale import Scale
from noprop.training.events import Deadline, Emit, Failed, Finished, Grid, Timing, print_nothing

__all__ = ["Planned", "Reproduction", "plan", "reproduce"]

RESERVE = 10.0  # seconds for the pages; a deadline leaves as much for training


@dataclass(frozen=True)
class Reproduction:
    """Experiments to reproduce, and their folders.

    Attributes:
        experiments: Names in :data:`noprop.paper.cells.EXPERIMENTS`.
        only: Words that select cells; see :func:`noprop.paper.cells.select`.
        scale: Scale of the experiments.
        seeds: Seeds to train; those of the scale unless given.
        runs: Folder for run folders.
        out: Folder for records, tables and figures.
        data_dir: First folder in which to look for data.

    Raises:
        ConfigError: If an experiment or a word is unknown.
    """

    experiments: Sequence[str]
    only: Sequence[str] = ()
    scale: Scale = field(default_factory=Scale)
    seeds: Sequence[int] | None = None
    runs: Path = Path("runs/reproduction")
    out: Path = Path("results/reproduction")
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.experiments:
            raise ConfigError(f"reproduce: wanted some of {', '.join(EXPERIMENTS)}")
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise ConfigError(f"reproduce: {name!r} is none of {', '.join(EXPERIMENTS)}")
        if self.only and not all_cells(self.experiments):
            raise ConfigError(f"--only: {', '.join(self.experiments)} has no cells to select from")
        self.cells  # noqa: B018  # report wrong words now

    @property
    def cells(self) -> list[Cell]:
        """Selected cells."""
        cells = all_cells(self.experiments)
        return select(cells, self.only) if self.only and cells else cells

    @property
    def records(self) -> Path:
        """File of the records."""
        return self.out / "results.jsonl"

    @property
    def jobs(self) -> list[Job]:
        """Jobs of every selected cell and seed, the cheapest first."""
        seeds = range(self.scale.seeds) if self.seeds is None else self.seeds
        jobs = [
            Job(cell, self.scale, seed, self.runs, self.data_dir)
            for cell in self.cells
            for seed in dict.fromkeys(seeds)
        ]
        return sorted(jobs, key=rough_work)

    def done(self) -> set[tuple[str, str, int]]:
        """Return the keys of existing records."""
        return {key_of(record) for record in read_records(self.records)}


def reproduce(
    wanted: Reproduction,
    *,
    at_a_time: int | None = None,
    deadline: float | None = None,
    emit: Emit = print_nothing,
) -> tuple[list[Path], dict[str, NoPropError]]:
    """Train the cells that are not done, and write a page for each experiment.

    Args:
        wanted: Experiments to reproduce.
        at_a_time: Number of cells to train at a time, each with one thread; the number of cores
            unless given.
        deadline: Seconds from now until which the function returns; running cells are stopped with
            a checkpoint.
        emit: Function that is called with every event; ``run`` names the event's run. ``Grid``
            comes first, ``Finished`` with each record, ``Failed`` with each error, and ``Deadline``
            if time runs out.

    Returns:
        Paths of the written files, and the error of each run that failed.

    Raises:
        NoPropError: If records cannot be read or written.
    """
    began, at_a_time = time.monotonic(), core_count() if at_a_time is None else at_a_time
    if at_a_time < 1:
        raise ConfigError(f"--jobs must be at least 1, got {at_a_time}")
    least = GRACE + 2 * RESERVE
    if deadline is not None and deadline < least:
        raise ConfigError(f"--deadline must be {least:g} seconds at least, got {deadline:g}")
    end = None if deadline is None else began + deadline - GRACE - RESERVE
    _check_writable(wanted.out)
    done, every = wanted.done(), wanted.jobs
    jobs = [job for job in every if job.key not in done]
    there = len(every) - len(jobs)
    emit(Grid({j.name: rough_work(j) for j in jobs}, there))
    failed: dict[str, NoPropError] = {}
    ended = 0
    try:
        for job, outcome in run_jobs(
            jobs,
            at_a_time=at_a_time,
            emit=emit,
            deadline=end,
            is_done=lambda job: job.key in wanted.done(),
        ):
            ended += 1
            if isinstance(outcome, NoPropError):
                failed[job.name] = outcome
                emit(Failed(str(outcome), run=job.name))
            elif outcome is not None:
                outcome |= {"beside": at_a_time}
                add_record(wanted.records, outcome)
                emit(Finished(outcome, run=job.name))
        if ended < len(jobs):
            emit(Deadline(len(jobs) - ended))
    finally:
        pages = write_pages(wanted.experiments, wanted.records, wanted.runs, wanted.out)
    return pages, failed


def _check_writable(out: Path) -> None:
    """Check that records can be written, before hours are spent on them.

    Raises:
        ConfigError: If they cannot.
    """
    probe = out / f".{os.getpid()}.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class Planned:
    """A cell of a plan.

    Attributes:
        cell: Cell to train.
        seeds: All seeds.
        done: Seeds that have a record.
        seconds: Time of one seed in one process of one thread, in seconds; None if all are done.
    """

    cell: Cell
    seeds: tuple[int, ...]
    done: tuple[int, ...]
    seconds: float | None


def plan(wanted: Reproduction, emit: Emit = print_nothing) -> list[Planned]:
    """Return the cells to train, with their time on this machine estimated from measured steps.

    Args:
        wanted: Experiments to reproduce.
        emit: Function that is called with ``Timing`` before the steps of a cell are timed.
    """
    done, cells = wanted.done(), {}
    for job in wanted.jobs:
        cells.setdefault(job.cell, []).append(job)
    planned, paces = [], {}
    for cell, jobs in cells.items():
        finished = tuple(job.seed for job in jobs if job.key in done)
        seconds = None
        if len(finished) < len(jobs):
            kind = cell.dataset, cell.method, cell.embedding  # readouts cost almost nothing
            if kind not in paces:
                emit(Timing(cell.name))
                paces[kind] = measure_pace(cell, cell.config(wanted.scale, 0))
            seconds = seconds_of(jobs[0], paces[kind])
        planned.append(Planned(cell, tuple(job.seed for job in jobs), finished, seconds))
    return planned
