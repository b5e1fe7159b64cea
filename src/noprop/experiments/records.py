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
from noprop.experiments.cells import Cell
from noprop.experiments.paper import Number
from noprop.training.metrics import append_line

__all__ = ["Summary", "add_record", "key_of", "pooled", "read_records", "summaries"]

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """All lines of a file; none if there is no file.

    Raises:
        RunError: If a line is no JSON object with a cell, scale and seed.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key_of(record)
        except (ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise RunError(f"{path}: line {number} is no result of a cell ({what})") from None
        records.append(record)
    return records


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
    """A cell at one scale, over its seeds.

    Attributes:
        cell: it.
        scale: its name.
        extent: of each of ``epochs``, ``train``, ``test`` and ``steps`` what was taken, and what
            the whole is.
        seeds: those that are done.
        runs: of inference, a seed.
        records: the newest line of each seed.
    """

    cell: Cell
    scale: str
    extent: dict[str, tuple[int, int]]
    seeds: tuple[int, ...]
    runs: int
    records: tuple[Record, ...]

    @property
    def is_full(self) -> bool:
        """Whether epochs, images and steps are the paper's."""
        return all(part == whole for part, whole in self.extent.values())

    def accuracy(self, mode: str) -> Number | None:
        """Test accuracy in % of a way of predicting, ``default`` for the method's own.

        Mean and standard error are of all inference runs of all seeds, as the paper's are.
        """
        found = []
        for record in self.records:
            test = record["test"]
            score = test["modes"].get(test["default"] if mode == "default" else mode)
            if score is None:
                return None
            found.append((score["accuracy"], score["accuracy_se"], test["runs"]))
        return pooled(found)

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
    """Lines by cell and scale; of a seed that is there twice the last line counts."""
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in records:
        extent = tuple((k, tuple(v)) for k, v in sorted(record["extent"].items()))
        key = (record["cell"], record["scale"], extent, record["test"]["runs"])
        groups.setdefault(key, {})[record["seed"]] = record
    made = []
    for (_, scale, extent, runs), by_seed in groups.items():
        lines = tuple(by_seed[seed] for seed in sorted(by_seed))
        cell = Cell(*(lines[0][k] for k in ("dataset", "method", "embedding", "readout")))
        made.append(Summary(cell, scale, dict(extent), tuple(sorted(by_seed)), runs, lines))
    return made
