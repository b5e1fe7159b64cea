"""Progress of training, on stderr: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from noprop.report.tables import FACTS, duration
from noprop.terminal import printable, tell
from noprop.training import events

__all__ = ["ProgressReport", "StepsReport"]

PLAIN_EVERY = 5.0  # seconds between plain lines


class ProgressReport:
    """Turns events of training into what a waiting person wants to know.

    Args:
        batch_size: examples an update.
        quiet: print nothing.
    """

    def __init__(self, batch_size: int, *, quiet: bool = False):
        self.batch_size = batch_size
        self.quiet = quiet
        self.started = time.monotonic()
        self.printed = 0.0
        self.groups = 0
        self.alone = False  # the readout is all there is to train
        # Of each group, in updates that read images: where it was first heard of, where it is now,
        # and how many there are.
        self.begun: dict[str, int] = {}
        self.latest: dict[str, int] = {}
        self.totals: dict[str, int] = {}
        self.losses: dict[str, float] = {}
        console = Console(stderr=True)
        self.live: Progress | None = None
        if console.is_terminal and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.live = Progress(*columns, console=console)
            self.live.start()
            self.overall = self.live.add_task("all units", total=1.0, note="")
            self.rows: dict[str, Any] = {}

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self.live:
            self.live.stop()

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        if isinstance(event, events.Started):
            self.groups = max(1, sum(g != "readout" for g in event.groups))
            self.alone = event.groups == ["readout"]
            names, count = event.groups, event.workers
            units = f"{len(names)} unit{'s' * (len(names) > 1)}"
            if event.engine == "ray":
                room = f"{count} at a time" if count else "waiting for a machine with room for one"
                self._line(f"training {units} as tasks of Ray, {room}")
            elif names:
                parts = f", mini-batches in {event.shards} shards" if event.shards > 1 else ""
                self._line(f"training {units} on {count} worker{'s' * (count > 1)}{parts}")
        elif isinstance(event, events.Found):
            self._line(f"{event.group} is trained already")
        elif isinstance(event, events.Restarted):
            self._line(
                f"{event.group}: its worker was lost; going on from its last checkpoint on "
                f"{event.node}"
            )
        elif isinstance(event, events.Damaged):
            at = f"update {event.position} of {event.total}"
            self._line(f"{event.reason}; going on from the one before it, {at}")
        elif isinstance(event, events.Progress):
            self._progress(event)
        elif isinstance(event, events.Epoch):
            self._epoch(event)
        elif isinstance(event, events.Trained):
            self._trained(event)
        elif isinstance(event, events.Evaluating):
            if self.live:
                self.live.stop()
                self.live = None
            self._line("evaluating")

    def _progress(self, event: events.Progress) -> None:
        unit, position = event.unit, event.position
        self.losses[unit] = event.loss
        if unit != "readout" or self.alone:
            group = unit if self.groups > 1 else "all"
            self.begun.setdefault(group, event.work)
            self.latest[group], self.totals[group] = event.work, event.total_work
        note = f"epoch {event.epoch}  loss {event.loss:.4g}"
        if self.live:
            if unit not in self.rows:
                self.rows[unit] = self.live.add_task(unit, total=1.0, note="")
            done = position / event.total
            self.live.update(self.rows[unit], completed=done, note=note)
            self.live.update(self.overall, completed=self.share, note=self.summary())
        elif time.monotonic() - self.printed > PLAIN_EVERY:
            self._line(f"{100 * self.share:3.0f} %  {unit} {note}  {self.summary()}")

    def _epoch(self, event: events.Epoch) -> None:
        """Beside the loss: what the method tells of itself, and whether its embeddings collapse."""
        told = [facts_text(event.facts)] if event.facts else []
        if s := event.embedding:
            told.append(
                f"embeddings {s['least_distance']:.3g} apart at least, "
                f"{s['least_length']:.3g} to {s['greatest_length']:.3g} long"
            )
        if told:
            self._line(f"epoch {event.epoch}, {event.unit}: {'; '.join(told)}")

    def _trained(self, event: events.Trained) -> None:
        for unit in event.units:
            if self.live and unit in self.rows:
                self.live.remove_task(self.rows.pop(unit))
        if len(event.units) == 1:
            unit = event.units[0]
            self._line(
                f"{unit} trained in {event.seconds:.1f} s, loss {self.losses.get(unit, 0):.4g}"
            )

    @property
    def share(self) -> float:
        """How much of the training is done, 0..1."""
        return min(1.0, self._sum_of_shares(self.latest) / max(1, self.groups))

    def _sum_of_shares(self, work: dict[str, int]) -> float:
        return sum((work[group] / self.totals[group] for group in work), 0.0)

    def summary(self) -> str:
        """Examples a second and block, and the time left."""
        elapsed = time.monotonic() - self.started
        updates = sum(self.latest[group] - self.begun[group] for group in self.latest)
        speed = f"{updates * self.batch_size / elapsed:,.0f} examples/s"
        # What an earlier process did took none of this one's time.
        done = self._sum_of_shares(self.latest) - self._sum_of_shares(self.begun)
        left = self.groups - self._sum_of_shares(self.latest)
        if done <= 0.02 * (done + left):
            return speed
        return f"{speed}, {duration(elapsed * left / done)} left"

    def _line(self, text: str) -> None:
        if self.quiet:
            return
        self.printed = time.monotonic()
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
            shown.append(f"{FACTS.get(name, name)} " + " ".join(f"{v:.4g}" for v in values))
    return ", ".join(shown)


class StepsReport:
    """Progress of a known number of steps of about the same length.

    Args:
        total: how many.
        quiet: print nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False):
        self.total, self.quiet, self.done = total, quiet, 0
        self.started, self.printed = time.monotonic(), 0.0
        console = Console(stderr=True)
        self.live: Progress | None = None
        if console.is_terminal and not quiet:
            columns = (BarColumn(), TextColumn("{task.fields[note]}"))
            self.live = Progress(*columns, console=console)
            self.live.start()
            self.bar = self.live.add_task("", total=total, note="")

    def __call__(self, text: str) -> None:
        """Another step is done."""
        self.done = min(self.done + 1, self.total)
        elapsed = time.monotonic() - self.started
        left = duration(elapsed / self.done * (self.total - self.done))
        note = text if self.done < 3 else f"about {left} left: {text}"
        if self.live:
            self.live.update(self.bar, completed=self.done, note=note)
        elif not self.quiet and (time.monotonic() - self.printed > PLAIN_EVERY):
            self.printed = time.monotonic()
            tell(f"{100 * self.done // self.total:3d} %, {note}")

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self.live:
            self.live.stop()
