"""What is kept of each trained cell: a JSON line with all that it takes to repeat it.

Lines are appended, never changed. A cell is done when a line has its name, scale and seed.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.errors import RunError
from noprop.paper.cells import Cell
from noprop.paper.numbers import Number
from noprop.paper.scale import Scale
from noprop.run.metrics import append_line

__all__ = ["Summary", "add_record", "key_of", "pooled", "read_records", "summaries"]

Record = dict[str, Any]
SAME = 1e-9  # standard errors below it are those of equal values


def read_records(path: Path) -> list[Record]:
    """All lines of a file; none if there is no file.

    A line that a full disk or a kill has cut short is left out: its cell is not done.

    Raises:
        RunError: If the file cannot be read, or a line is JSON of something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if lacks := _lacks(record):
            raise RunError(f"{path}: line {number} is no result of a cell: it has no {lacks}")
        records.append(record)
    return records


def _lacks(record: Any) -> str | None:
    """The first of what every line has that this one has not."""
    parts = {
        "": ("cell", "dataset", "method", "embedding", "readout", "scale", "seed", "extent"),
        "test": ("modes", "default", "runs", "samples", "steps", "calibration_error"),
        "train": ("accuracy", "accuracy_se", "runs"),
        "training": (),
        "config": ("train", "method"),
        "environment": ("commit", "processor"),
    }
    for part, names in parts.items():
        table = record.get(part) if part and isinstance(record, dict) else record
        if not isinstance(table, dict):
            return part or "fields"
        for name in names:
            if name not in table:
                return f"{part}.{name}".strip(".")
    return None


def add_record(path: Path, record: Record) -> None:
    """Append one; several processes may do so.

    Raises:
        RunError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, (json.dumps(record) + "\n").encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def key_of(record: Record) -> tuple[str, str, int]:
    """Its cell, scale and seed."""
    return record["cell"], record["scale"], record["seed"]


@dataclass(frozen=True)
class Summary:
    """A cell at one scale on one kind of hardware, over its seeds.

    Attributes:
        cell: it.
        scale: its name.
        extent: of each of ``epochs``, ``train``, ``test``, ``steps``, ``runs`` and ``samples`` what
            was taken, and what a full result has; of training images that is all but a tenth, which
            is held out.
        hardware: a GPU, or a processor.
        seeds: those that are done.
        records: the newest line of each seed.
    """

    cell: Cell
    scale: str
    extent: dict[str, tuple[int, int]]
    hardware: str
    seeds: tuple[int, ...]
    records: tuple[Record, ...]

    @property
    def runs(self) -> int:
        """Of inference, a seed."""
        return self.extent["runs"][0]

    @property
    def is_full(self) -> bool:
        """Whether nothing is less than the paper's, but for a tenth of the images."""
        return all(part >= whole for part, whole in self.extent.values())

    def accuracy(self, mode: str) -> Number | None:
        """Test accuracy in % of a way of predicting, ``default`` for the method's own.

        Mean and standard error are of all inference runs of all seeds, as the paper's are said to
        be. Where runs of a seed are the same, there being no noise in it, they count as one.
        """
        parts = self._accuracies(mode)
        return pooled([(m, e, n if e > SAME else 1) for m, e, n in parts]) if parts else None

    def between_seeds(self, mode: str) -> Number | None:
        """The same with the error of the seeds' means: runs of a seed share its weights."""
        parts = self._accuracies(mode)
        return pooled([(m, 0.0, 1) for m, _, _ in parts]) if parts else None

    def _accuracies(self, mode: str) -> list[tuple[float, float, int]] | None:
        found = []
        for record in self.records:
            test = record["test"]
            score = test["modes"].get(test["default"] if mode == "default" else mode)
            if score is None:
                return None
            found.append((score["accuracy"], score["accuracy_se"], test["runs"]))
        return found

    @property
    def train_accuracy(self) -> Number:
        """Of single chains on training images, in %."""
        parts = [record["train"] for record in self.records]
        return pooled([(p["accuracy"], p["accuracy_se"], p["runs"]) for p in parts])

    def mean(self, *path: str) -> float | None:
        """Of a number at some place of the lines; None where one has none."""
        values = []
        for record in self.records:
            value: Any = record
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                return None
            values.append(float(value))
        return math.fsum(values) / len(values)


def pooled(parts: Sequence[tuple[float, float, int]]) -> Number:
    """Mean and standard error of values of which groups are known by mean, standard error and n.

    Exact: a group's squares about its own mean are (n - 1) n times its squared standard error.
    """
    n = sum(count for *_, count in parts)
    mean = math.fsum(count * m for m, _, count in parts) / n
    squares = math.fsum(
        (count - 1) * count * error**2 + count * (m - mean) ** 2 for m, error, count in parts
    )
    return Number(mean, math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan)


def summaries(records: Iterable[Record]) -> list[Summary]:
    """Lines by cell, scale and hardware; of a seed that is there twice the last line counts."""
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in records:
        e, test = record["environment"], record["test"]
        extent = {name: tuple(pair) for name, pair in record["extent"].items()}
        extent |= {name: (test[name], getattr(Scale(), name)) for name in ("runs", "samples")}
        hardware = e.get("gpu") or e["processor"]
        key = record["cell"], record["scale"], tuple(sorted(extent.items())), hardware
        groups.setdefault(key, {})[record["seed"]] = record
    made = []
    for (_, scale, extent, hardware), by_seed in groups.items():
        lines = tuple(by_seed[seed] for seed in sorted(by_seed))
        cell = Cell(*(lines[0][k] for k in ("dataset", "method", "embedding", "readout")))
        made.append(Summary(cell, scale, dict(extent), hardware, tuple(sorted(by_seed)), lines))
    return made
