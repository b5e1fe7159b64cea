"""Cells under way, in lines on stderr: how far all are, what is left, and what each one found."""

import time
from collections.abc import Mapping
from typing import Any

from noprop.paper.numbers import TABLE1, TABLE2
from noprop.report.tables import duration
from noprop.terminal import tell
from noprop.training import events

__all__ = ["CellReport"]

EVERY = 10.0  # seconds between lines of mere progress
LAST_STRETCH = 0.9  # of a cell is training, for all that is known before it is scored


class CellReport:
    """Turns the events of :func:`noprop.paper.reproduce.reproduce` into lines.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet, self.started, self.printed = quiet, time.monotonic(), time.monotonic()
        self.work: Mapping[str, float] = {}
        self.shares: dict[str, float] = {}
        self.before: dict[str, float] = {}  # shares of earlier processes
        self.groups: dict[str, dict[str, float]] = {}
        self.doing: dict[str, str] = {}

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        run = event.run
        if isinstance(event, events.Cells):
            self.work = event.runs
            there = f"; {event.done} are done already" if event.done else ""
            self._line(f"{len(self.work)} cells to train and score{there}")
        elif isinstance(event, events.Timing):
            self._line(f"timing a step of {event.cell}")
        elif isinstance(event, events.Started):
            self.groups.setdefault(run, {})
            self.groups[run] |= dict.fromkeys(event.groups, 0.0)
            self.doing[run] = "training"
        elif isinstance(event, events.Progress):
            self._heard(run, event.unit, event.work / event.total_work)
        elif isinstance(event, events.Found):
            self.groups.setdefault(run, {})[event.group] = 1.0
        elif isinstance(event, events.Trained):
            self._heard(run, event.units[0], 1.0)
        elif isinstance(event, events.Evaluating | events.Measuring):
            self.doing[run] = "scoring"
            self.shares[run] = max(self.shares.get(run, 0.0), LAST_STRETCH)
        elif isinstance(event, events.Scored):
            self._ended(run)
            self._line(f"{self._count()} {run}: {_found(event.record)}")
        elif isinstance(event, events.Failed):
            self._ended(run)
            self._line(f"{self._count()} {run}: failed: {event.reason}")
        elif isinstance(event, events.Deadline):
            self._line(
                f"the time is up: {event.left} cells are left; what was under way goes on from "
                "its checkpoint with the same command"
            )
        if time.monotonic() - self.printed > EVERY:
            self._line(self.summary())

    def _heard(self, run: str, unit: str, share: float) -> None:
        groups = self.groups.setdefault(run, {unit: 0.0})
        groups[unit if unit in groups else next(iter(groups))] = share
        self.shares[run] = LAST_STRETCH * sum(groups.values()) / len(groups)
        self.before.setdefault(run, self.shares[run])

    def _ended(self, run: str) -> None:
        self.shares[run] = 1.0
        self.doing.pop(run, None)

    def _count(self) -> str:
        ended = sum(share == 1.0 for share in self.shares.values())
        return f"[{ended}/{len(self.work)}]"

    def summary(self) -> str:
        """How much is done, what is under way, and the time left."""
        total = sum(self.work.values()) or 1.0
        done = sum(self.work.get(run, 0.0) * share for run, share in self.shares.items()) / total
        running = ", ".join(
            f"{run} {what} {100 * self.shares.get(run, 0.0):.0f} %"
            for run, what in self.doing.items()
        )
        text = f"{100 * done:3.0f} %  {self._count()} {running}"
        before = sum(self.work.get(run, 0.0) * share for run, share in self.before.items()) / total
        ours = done - before
        if ours < 0.02:
            return text
        elapsed = time.monotonic() - self.started
        return f"{text}; about {duration(elapsed * (1 - done) / ours)} left"

    def _line(self, text: str) -> None:
        if not self.quiet:
            self.printed = time.monotonic()
            tell(text)


def _found(record: Mapping[str, Any]) -> str:
    """Accuracy, ours and the paper's, and how long it took."""
    test = record["test"]
    one, ours = (test["modes"][mode]["accuracy"] for mode in ("single", test["default"]))
    row, dataset = (record["method"], record["embedding"]), record["dataset"]
    paper = (TABLE1.get(row, {}) | TABLE2.get(row, {})).get(dataset)
    shown = paper and record["readout"] == "softmax"
    printed = f" (the paper, at full scale: {paper[1].mean:.2f} %)" if paper and shown else ""
    seconds = record["training"].get("seconds", 0.0)
    return f"one chain {one:.2f} %, averaged {ours:.2f} %{printed}; trained in {duration(seconds)}"
