"""Progress on stderr: bars on a terminal, plain lines elsewhere.

One reporter serves a single run, a grid, a reproduction of the paper and a benchmark.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from noprop.report.tables import FACT_NAMES, accuracy_text, duration
from noprop.run.units import COUPLED, condensed
from noprop.terminal import printable, tell
from noprop.training.events import (
    Damaged,
    Deadline,
    Epoch,
    Evaluated,
    Evaluating,
    Event,
    Failed,
    Finished,
    Found,
    Grid,
    Initialized,
    Progress,
    Restarted,
    Started,
    Step,
    Tick,
    Timing,
    Trained,
)

__all__ = ["Report"]

TRAINING = 0.9  # share of training in the time of a run that has not begun
EVALUATING = "evaluating"
NAMED = 4  # runs in progress that a line names


@dataclass
class _Group:
    """Updates of a group that read images: at first, now, and in all."""

    first: int
    now: int
    total: int


@dataclass
class _Run:
    """What is known of a run.

    Attributes:
        work: Amount of its work; only the ratio to other runs counts.
        groups: Its groups by name; None until one is heard of.
        quick: Names of units whose updates take almost no time.
        doing: What it does now; empty before and after.
        epochs: Number of its epochs; 0 if it is not known.
        training: Share of training in its time, the rest evaluates it; None if it is not known.
        evaluated: Share of its evaluation that is done.
        ended: Whether it has finished or failed.
    """

    work: int | float = 1.0
    groups: dict[str, _Group | None] = field(default_factory=dict)
    quick: Sequence[str] = ()
    doing: str = ""
    epochs: int = 0
    training: float | None = None
    evaluated: float = 0.0
    ended: bool = False

    def group_of(self, unit: str) -> str:
        """Return the name of a unit's group: its own, or that of all units."""
        return unit if unit in self.groups else next(iter(self.groups), unit)

    @property
    def counted(self) -> list[_Group | None]:
        """The groups whose updates take the time: quick ones only if nothing else is left."""
        slow = [group for name, group in self.groups.items() if name not in self.quick]
        left = any(group is None or group.first < group.total for group in slow)
        return slow if left else list(self.groups.values())

    def shares(self) -> tuple[float, float]:
        """Return how much of the training was done at first, and is done now: 0..1."""
        known, count = [group for group in self.counted if group], max(1, len(self.counted))
        first = sum(group.first / group.total for group in known) / count
        return first, sum(group.now / group.total for group in known) / count


class Report:
    """Prints the events of one run, or of the runs of a grid or a reproduction.

    Args:
        batch_size: Number of examples in an update of a single run; its speed is shown if given.
        result: Text of the results of a finished run.
        quiet: Print nothing.
    """

    def __init__(
        self,
        batch_size: int = 0,
        *,
        result: Callable[[Mapping[str, Any]], str] = accuracy_text,
        quiet: bool = False,
    ):
        self.batch_size, self.result, self.quiet = batch_size, result, quiet
        self.created, self.printed = time.monotonic(), 0.0
        self.clock: float | None = None  # when the first work was done: starting takes seconds
        self.runs: dict[str, _Run] = {}
        self.several = False
        self.note = ""  # the last news of a single run
        self.losses: dict[str, float] = {}
        self.judged: dict[tuple[str, int], float] = {}  # validation loss of a unit's epoch
        self.console = Console(stderr=True)
        self.live: Bars | None = None
        self.bars: dict[str, TaskID] = {}

    def close(self) -> None:
        """Stop the bars, and leave the terminal as it was found."""
        if self.live:
            self.live.stop()
        self.live, self.bars = None, {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        match event:
            case Grid():
                self.several = True
                self.runs = {name: _Run(work) for name, work in event.runs.items()}
                done = f"; {event.done} are already finished" if event.done else ""
                self._line(f"training {_count(len(event.runs), 'run')}{done}")
                for note in event.notes:
                    self._line(note)
            case Initialized():
                fresh = f"; from the seed: {condensed(event.fresh)}" if event.fresh else ""
                self._detail(
                    f"starting from the weights of {event.source}: {condensed(event.taken)}{fresh}"
                )
            case Started():
                self._started(event)
            case Found():
                self._run(event).groups[event.group] = _Group(1, 1, 1)
                self._detail(f"{event.group} is already trained")
            case Restarted():
                self._line(
                    f"{event.group}: its worker was lost; resuming from its last checkpoint on "
                    f"{event.node}",
                    event.run,
                )
            case Damaged():
                at = f"update {event.position} of {event.total}"
                self._line(f"{event.reason}; resuming from the one before it, {at}", event.run)
            case Progress():
                self._progress(event)
            case Epoch():
                self._epoch(event)
            case Trained():
                self._trained(event)
            case Evaluating():
                self._evaluating(event)
            case Evaluated():
                self._evaluated(event)
            case Finished() | Failed():
                self._ended(event)
            case Timing():
                self._line(f"timing the steps of {event.cell}")
            case Step():
                self._run(event).groups["steps"] = _Group(0, event.number, event.total)
                self.note = event.text
                self._show()
            case Tick():
                self._show()
            case Deadline():
                left = _count(event.left, "run")
                self._line(f"the time is over with {left} left; resume with the same command")

    # -- events ------------------------------------------------------------------------------------

    def _run(self, event: Event) -> _Run:
        return self.runs.setdefault(event.run, _Run())

    def _started(self, event: Started) -> None:
        run = self._run(event)
        run.groups |= dict.fromkeys(event.groups)
        run.quick = event.quick
        run.doing, run.epochs = "training", event.epochs
        if event.evaluation is not None:
            run.training = 1 / (1 + event.evaluation)
        together = list(event.groups) == [COUPLED]
        units = "all units together" if together else _count(len(event.groups), "unit")
        if event.engine == "ray":
            room = f"{event.workers} at a time" if event.workers else "waiting for a free machine"
            self._detail(f"training {units} as tasks of Ray, {room}")
        elif event.engine == "slurm":
            self._detail(f"training {units} as tasks of Slurm")
        elif event.groups:
            shards = f", mini-batches in {event.shards} shards" if event.shards > 1 else ""
            self._detail(f"training {units} on {_count(event.workers, 'worker')}{shards}")

    def _progress(self, event: Progress) -> None:
        run = self._run(event)
        name = run.group_of(event.unit)
        known = run.groups.get(name)
        first = known.first if known else event.work
        run.groups[name] = _Group(first, event.work, event.total_work)
        self.clock = time.monotonic() if self.clock is None else self.clock
        self.losses[event.unit] = event.loss
        of = f"/{run.epochs}" if run.epochs else ""
        note = f"epoch {event.epoch}{of}  loss {event.loss:.4g}"
        self.note = f"{event.unit} {note}"
        if self.several:
            self._bar(event.run, self._shares_of(run)[1], run.doing)
        else:
            self._bar(event.unit, event.position / event.total, note)
        self._show()

    def _epoch(self, event: Epoch) -> None:
        """Print what the method reports, and whether its embeddings collapse."""
        if event.validation_loss is not None:
            self.judged[event.unit, event.epoch] = event.validation_loss
        told = [facts_text(event.facts)] if event.facts else []
        if s := event.embedding:
            told.append(
                f"embeddings at least {s['least_distance']:.3g} apart, "
                f"{s['least_length']:.3g} to {s['greatest_length']:.3g} long"
            )
        if told:
            self._detail(f"epoch {event.epoch}, {event.unit}: {'; '.join(told)}")

    def _trained(self, event: Trained) -> None:
        run = self._run(event)
        name = run.group_of(event.units[0])
        known = run.groups.get(name) or _Group(0, 1, 1)
        # A group that was stopped early has done what it had to do: nothing more takes time.
        stopped = bool(event.last_epoch) and event.last_epoch < run.epochs
        total = max(1, known.now) if stopped else known.total
        run.groups[name] = _Group(known.first, total, total)
        for unit in event.units:
            self._remove_bar(unit)
        took = f"{condensed(event.units)} trained in {event.seconds:.1f} s"
        unit = event.units[0] if len(event.units) == 1 else ""
        if event.best_epoch:
            end = f"stopped after epoch {event.last_epoch} of {run.epochs}, " if stopped else ""
            loss = self.judged.get((unit, event.best_epoch))
            told = "" if loss is None else f", whose validation loss is {loss:.4g}"
            self._detail(f"{took}; {end}keeps the weights of epoch {event.best_epoch}{told}")
        elif unit:
            self._detail(f"{took}, loss {self.losses.get(unit, 0.0):.4g}")

    def _evaluating(self, event: Evaluating) -> None:
        run = self._run(event)
        first, run.doing, run.evaluated = run.doing != EVALUATING, EVALUATING, event.share
        if self.several:
            self._bar(event.run, self._shares_of(run)[1], run.doing)
        elif first:
            self.close()  # the bars of the units
            self.clock, run.groups, run.training = time.monotonic(), {}, 0.0
            self.note, self.batch_size = EVALUATING, 0
            self._line(f"evaluating {event.text}".rstrip())
            return
        self._show()

    def _evaluated(self, event: Evaluated) -> None:
        self._run(event).evaluated = 1.0
        if not self.several:
            self.close()

    def _ended(self, event: Finished | Failed) -> None:
        run = self._run(event)
        run.doing, run.ended = "", True
        if isinstance(event, Failed):
            run.work = 0.0  # nothing more of it takes time
            text = f"failed: {event.reason}"
        else:
            text = self.result(event.results)
        self._remove_bar(event.run)
        self._line(f"{self._count_ended()} {event.run}: {text}")
        self._show()

    # -- how much is done, and what is left --------------------------------------------------------

    def shares(self) -> tuple[float, float]:
        """Return how much of all work was done at first, and is done now: 0..1."""
        total = sum(run.work for run in self.runs.values())
        if not total:
            return 1.0, 1.0
        pairs = [[run.work * share for share in self._shares_of(run)] for run in self.runs.values()]
        first, now = (sum(shares) / total for shares in zip(*pairs, strict=True))
        return first, now

    def _shares_of(self, run: _Run) -> tuple[float, float]:
        training = run.training
        if training is None:
            training = TRAINING if self.several else 1.0
        first, now = (share * training for share in run.shares())
        now += (1 - training) * run.evaluated
        if run.ended:  # by an earlier command, if nothing was heard of its groups
            return first if run.groups else 1.0, 1.0
        return first, now

    def pace(self) -> str:
        """Return the examples a second of a single run, and the time left."""
        told, now = [], time.monotonic()
        elapsed = now - (self.created if self.clock is None else self.clock)
        if self.batch_size and not self.several and elapsed:
            groups = [group for run in self.runs.values() for group in run.counted if group]
            if updates := sum(group.now - group.first for group in groups):
                told.append(f"{updates * self.batch_size / elapsed:,.0f} examples/s")
        first, share = self.shares()
        if share - first > 0.02 * (1 - first):  # what was done before took no time of this command
            told.append(f"{duration(elapsed * (1 - share) / (share - first))} left")
        return ", ".join(told)

    def _count_ended(self) -> str:
        return f"[{sum(run.ended for run in self.runs.values())}/{len(self.runs)}]"

    def _in_progress(self) -> str:
        """Return the runs in progress, with the share of each."""
        shares = [
            f"{name} {run.doing} {100 * self._shares_of(run)[1]:.0f} %"
            for name, run in self.runs.items()
            if run.doing
        ]
        more = f" and {len(shares) - NAMED} more" if len(shares) > NAMED else ""
        return f"{self._count_ended()} {', '.join(shares[:NAMED])}{more}"

    # -- the terminal ------------------------------------------------------------------------------

    def _show(self) -> None:
        """Move the bar of all, or print a line if none was printed for a while."""
        if self._shows_bars:
            head = self._count_ended() if self.several else "" if len(self.bars) > 1 else self.note
            self._bar("", self.shares()[1], f"{head}  {self.pace()}".strip())
            return
        now = time.monotonic()
        # Seldom in a run of hours, whose log a person reads.
        if now - self.printed > max(5.0, (now - self.created) / 100):
            news = self._in_progress() if self.several else self.note
            share, since = f"{100 * self.shares()[1]:3.0f} %", duration(now - self.created)
            self._line(f"{share}  {since}  {news}  {self.pace()}".rstrip())

    @property
    def _shows_bars(self) -> bool:
        return self.console.is_terminal and not self.quiet

    def _bar(self, name: str, share: float, note: str) -> None:
        if not self._shows_bars:
            return
        if self.live is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self.live = Bars(*columns, console=self.console)
            self.live.start()
            self.bars[""] = self.live.add_task("all", total=1.0, note="")
        if name not in self.bars:
            self.bars[name] = self.live.add_task(printable(name), total=1.0, note="")
        self.live.update(self.bars[name], completed=share, note=note)

    def _remove_bar(self, name: str) -> None:
        if self.live and name in self.bars:
            self.live.remove_task(self.bars.pop(name))

    def _detail(self, text: str) -> None:
        """Print a line of a single run; of several runs it would be too much."""
        if not self.several:
            self._line(text)

    def _line(self, text: str, run: str = "") -> None:
        if self.quiet:
            return
        self.printed = time.monotonic()
        text = f"{run}: {text}" if run else text
        if self.live:
            self.live.console.print(printable(text), highlight=False, markup=False)
        else:
            tell(text)


def facts_text(facts: Mapping[str, Any]) -> str:
    """A method's numbers of one epoch in a line; long lists are for the plots."""
    shown = []
    for name, value in facts.items():
        values = value if isinstance(value, list) else [value]
        if len(values) <= 10:
            shown.append(f"{FACT_NAMES.get(name, name)} " + " ".join(f"{v:.4g}" for v in values))
    return ", ".join(shown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
