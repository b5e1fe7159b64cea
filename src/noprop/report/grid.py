"""A grid of runs as a person reads it: its progress in lines, and its table at the end."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from noprop.report.tables import duration, table
from noprop.terminal import tell
from noprop.training import events

__all__ = ["GridReport", "grid_text"]

PLAIN_EVERY = 5.0  # seconds between lines of mere progress


class GridReport:
    """Turns events of a grid, which say whose they are, into lines on stderr.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet, self.started, self.printed = quiet, time.monotonic(), 0.0
        self.groups: Mapping[str, Sequence[str]] = {}
        self.shares: dict[tuple[str, str], float] = {}
        self.before = 0.0  # what earlier processes did

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        run = event.run
        if isinstance(event, events.Grid):
            self.groups = event.runs
            units = sum(map(len, self.groups.values()))
            self._line(f"training {len(self.groups)} runs of {units} groups of units")
        elif isinstance(event, events.Progress):
            group = event.unit if event.unit in self.groups[run] else self.groups[run][0]
            self._heard(run, group, event.position / event.total)
        elif isinstance(event, events.Trained | events.Found):
            names = event.units if isinstance(event, events.Trained) else [event.group]
            group = names[0] if names[0] in self.groups[run] else self.groups[run][0]
            self._heard(run, group, 1.0, begun=1.0 if isinstance(event, events.Found) else 0.0)
        elif isinstance(event, events.Restarted):
            self._line(f"{run}: {event.group} goes on from its last checkpoint, elsewhere")
        elif isinstance(event, events.Damaged):
            self._line(f"{run}: {event.reason}; going on from the one before it")
        elif isinstance(event, events.Finished | events.Failed):
            for group in self.groups[run]:
                self._heard(run, group, 1.0, begun=1.0)
            how = "finished" if isinstance(event, events.Finished) else f"failed: {event.reason}"
            self._line(f"{run}: {how}")

    def _heard(self, run: str, group: str, share: float, begun: float | None = None) -> None:
        if (run, group) not in self.shares:
            self.before += share if begun is None else begun
        self.shares[run, group] = share
        if time.monotonic() - self.printed > PLAIN_EVERY:
            self._line(self.summary())

    def summary(self) -> str:
        """How much is trained, and the time left."""
        total = sum(map(len, self.groups.values()))
        done = sum(self.shares.values())
        trained = sum(share == 1.0 for share in self.shares.values())
        text = f"{100 * done / total:3.0f} %  {trained} of {total} groups of units trained"
        ours = done - self.before
        if ours <= 0.02 * total:
            return text
        elapsed = time.monotonic() - self.started
        return f"{text}, {duration(elapsed * (total - done) / ours)} left"

    def _line(self, text: str) -> None:
        if not self.quiet:
            self.printed = time.monotonic()
            tell(text)


def grid_text(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Recipes by accuracy, as :func:`noprop.grid.summary` gives it."""
    head = ["accuracy %, mean ± standard error", "seeds", "our prediction", "one chain"]
    rows = [
        [recipe, str(row["seeds"]), _pm(row, "accuracy"), _pm(row, "single")]
        for recipe, row in summary.items()
    ]
    return table(head, rows)


def _pm(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    error = row[f"{name}_se"]
    return f"{row[name]:.2f}" + ("" if error is None else f" ± {error:.2f}")
