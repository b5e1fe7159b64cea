"""Records of trained cells: a JSON line for each, with all that is needed to repeat it.

Lines are appended, never changed. A cell is done if a record has its name, scale and seed.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.errors import RunError
from noprop.paper.cells import Cell
from noprop.paper.numbers import EARLIER, Number
from noprop.paper.scale import Scale
from noprop.run.metrics import append_line

__all__ = ["Summary", "add_record", "key_of", "pooled", "read_records", "summaries"]

Record = dict[str, Any]
SAME = 1e-9  # a smaller standard error is that of equal values


def read_records(path: Path) -> list[Record]:
    """Return all records of a file; none if the file does not exist.

    Lines that are not JSON, such as one truncated by a full disk or a kill, are skipped.

    Raises:
        RunError: If the file cannot be read, or a line is JSON but not a record.
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
            raise RunError(f"{path}: line {number} is not a result of a cell: it has no {lacks}")
        records.append(record)
    return records


def _lacks(record: Any) -> str | None:
    """Return the name of the first field that a record lacks, or None."""
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
    """Append a record to a file; several processes may append at the same time.

    Raises:
        RunError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, (json.dumps(record) + "\n").encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def key_of(record: Record) -> tuple[str, str, int]:
    """Return cell, scale and seed of a record."""
    return record["cell"], record["scale"], record["seed"]


@dataclass(frozen=True)
class Summary:
    """Results of a cell at one scale on one kind of hardware, over seeds.

    Attributes:
        cell: Cell of the results.
        scale: Name of the scale.
        extent: Value of these results and of a full result, for each of ``epochs``, ``train``,
            ``test``, ``steps``, ``runs`` and ``samples``, as far as the method has them. A full
            result has all training images except a held-out tenth.
        hardware: Name of the GPU or processor.
        seeds: Seeds that are done.
        records: Newest record of each seed.
    """

    cell: Cell
    scale: str
    extent: dict[str, tuple[int, int]]
    hardware: str
    seeds: tuple[int, ...]
    records: tuple[Record, ...]

    @property
    def runs(self) -> int:
        """Number of inference runs per seed."""
        return self.records[-1]["test"]["runs"]

    @property
    def is_full(self) -> bool:
        """Whether every extent is that of a full result."""
        return all(part >= whole for part, whole in self.extent.values())

    def accuracy(self, mode: str) -> Number | None:
        """Return the test accuracy in % of a way of predicting, or of the method's ``default``.

        Mean and standard error are over all inference runs of all seeds, as the paper states for
        its own. Equal runs of one seed, which draw no noise, count as one.
        """
        parts = self._accuracies(mode)
        return pooled([(m, e, n if e > SAME else 1) for m, e, n in parts]) if parts else None

    def between_seeds(self, mode: str) -> Number | None:
        """Return the test accuracy in % with the standard error of the seeds' means.

        It differs from :meth:`accuracy` because runs of a seed share its weights.
        """
        parts = self._accuracies(mode)
        return pooled([(m, 0.0, 1) for m, _, _ in parts]) if parts else None

    def _accuracies(self, mode: str) -> list[tuple[float, float, int]] | None:
        found = []
        for record in self.records:
            test = record["test"]
            score = test["modes"].get(test["default"] if mode == "default" else mode)
            if score is None:
                return None
            found.append((score["accuracy"], score["accuracy_se"] or 0.0, test["runs"]))
        return found

    @property
    def train_accuracy(self) -> Number:
        """Accuracy of single chains on training images, in %."""
        parts = [record["train"] for record in self.records]
        return pooled([(p["accuracy"], p["accuracy_se"] or 0.0, p["runs"]) for p in parts])

    def mean(self, *path: str) -> float | None:
        """Return the mean of a field over the records, or None if a record lacks it."""
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
    """Combine groups of values, each given by mean, standard error and n, into one.

    The result is exact, because the squared deviations of a group sum to (n - 1) n times its
    squared standard error.
    """
    n = sum(count for *_, count in parts)
    mean = math.fsum(count * m for m, _, count in parts) / n
    squares = math.fsum(
        (count - 1) * count * error**2 + count * (m - mean) ** 2 for m, error, count in parts
    )
    return Number(mean, math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan)


def summaries(records: Iterable[Record]) -> list[Summary]:
    """Group records by cell, scale and hardware; of several records of a seed the last counts."""
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in records:
        e, test = record["environment"], record["test"]
        extent = {name: tuple(pair) for name, pair in record["extent"].items()}
        if record["method"] not in EARLIER:  # those have no noise, so one run and one chain are all
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
