"""Markdown tables: our results and the paper's, and results that the paper does not report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from noprop.paper.checks import checks
from noprop.paper.numbers import (
    DATASETS,
    EARLIER,
    EMBEDDINGS,
    MEMORY_GB,
    METHODS,
    TABLE1,
    TABLE2,
    Number,
)
from noprop.paper.records import Summary
from noprop.report.tables import accuracy_text, duration, mean_text
from noprop.terminal import printable

__all__ = [
    "accuracy_tables",
    "brief",
    "markdown",
    "memory_table",
    "more_table",
    "result_text",
    "scale_text",
]

PAPER_VALUES = 15  # 3 seeds × 5 runs for each of the paper's numbers

Paper = Mapping[tuple[str, str], Mapping[str, tuple[Number | None, Number | None]]]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars in its cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[printable(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


WORDS = {
    "epochs": "epochs",
    "train": "training images",
    "steps": "",
    "test": "test images",
    "runs": "runs",
    "samples": "chains averaged",
}


def scale_text(summary: Summary) -> str:
    """Describe how much of the paper's training and evaluation was done; ``full`` for all."""
    parts = ["full"] if summary.is_full else []
    for name, what in WORDS.items():
        part, whole = summary.extent.get(name, (0, 0))
        if part > whole:  # no images are held out
            parts.append(f"{part:,} {what}")
        elif part < whole:
            parts.append(f"{part:,} of {whole:,} {what}" if what else f"T = {part} of {whole:,}")
    return ", ".join(parts)


def row_name(method: str, embedding: str, readout: str = "softmax") -> str:
    """Return the name of a row as the paper writes it."""
    if method in EARLIER:
        return EARLIER[method]
    starts = {"random-image": "random, image-sized", "orthogonal-image": "orthogonal, image-sized"}
    kind = EMBEDDINGS.get(embedding) or starts[embedding]
    return f"{METHODS[method]} ({kind}{', radial readout' if readout == 'radial' else ''})"


def _pm(number: Number | None, digits: int = 2) -> str:
    return mean_text(number.mean, number.error, digits) if number else "–"


def _row(summary: Summary) -> tuple[str, str, str]:
    """Return the row of a table to which a summary belongs: method, embedding and readout."""
    cell = summary.cell
    return cell.method, cell.embedding, cell.readout


def _place(row: tuple[str, str, str]) -> tuple[int, int, bool]:
    """Return a sort key that orders method, embedding and readout as the paper's rows."""
    method, embedding, readout = row
    kinds = [*EMBEDDINGS, "random-image", "orthogonal-image"]
    return [*METHODS, *EARLIER].index(method), kinds.index(embedding), readout != "softmax"


def _sorted(found: Iterable[Summary]) -> list[Summary]:
    """Sort results in the order of the paper's rows, and those of one row by scale, full first."""

    def key(s: Summary) -> tuple[object, ...]:
        share = math.prod(part / whole for part, whole in s.extent.values())
        return *_place(_row(s)), not s.is_full, -share

    return sorted(found, key=key)


def accuracy_tables(found: Sequence[Summary], paper: Paper) -> str:
    """Return a table for each data set: the paper's accuracy, ours by its protocol, and averaged.

    Full and scaled results never share a row, and each row states its scale.
    """
    parts = []
    for dataset in dict.fromkeys(d for row in paper.values() for d in row):
        rows, notes = [], []
        here = [s for s in found if s.cell.dataset == dataset]
        printed = {row: numbers[dataset] for row, numbers in paper.items() if dataset in numbers}
        names = {(m, e, "softmax") for m, e in printed} | {_row(s) for s in here}
        for row in sorted(names, key=_place):
            numbers = printed.get(row[:2]) if row[2] == "softmax" else None
            mine, name = _sorted(s for s in here if _row(s) == row), row_name(*row)
            for summary in mine:
                rows.append([name, *_accuracies(summary, numbers)])
                if summary.is_full and numbers and (note := _difference(numbers[1], summary)):
                    notes.append(f"- {name}: {note}")
            if not mine and numbers:
                rows.append([name, "not run", "", _pm(numbers[0]), "", _pm(numbers[1]), "", "", ""])
        parts.append(f"## {DATASETS[dataset]}\n\n{markdown(ACCURACY_HEAD, rows)}")
        if notes:
            parts.append("Beyond two standard errors of the difference:\n\n" + "\n".join(notes))
    return "\n\n".join(parts)


def _accuracies(summary: Summary, printed: tuple[Number | None, Number | None] | None) -> list[str]:
    return [
        scale_text(summary),
        f"{len(summary.seeds)} × {summary.runs}",
        _pm(printed and printed[0]),
        _pm(summary.train_accuracy),
        _pm(printed and printed[1]),
        _pm(summary.accuracy("single")),
        _pm(summary.accuracy("default")),
        _pm(summary.accuracy("mean")),
    ]


ACCURACY_HEAD = [
    "method",
    "scale",
    "seeds × runs",
    "train, paper",
    "train, ours",
    "test, paper",
    "test, ours: one chain",
    "test, ours: averaged",
    "test, ours: mean chain",
]


def _difference(paper: Number | None, summary: Summary) -> str | None:
    """Describe a difference of more than two standard errors from the paper, or return None.

    Our standard error is that of the seeds' means, which needs two seeds. The paper's is taken as a
    standard deviation of its 15 values, because some are too large for standard errors; a number
    that it quotes has none.
    """
    ours = summary.between_seeds("single")
    if paper is None or ours is None or math.isnan(ours.error):
        return None
    more = ours.mean - paper.mean
    spread = 0.0 if math.isnan(paper.error) else paper.error
    if abs(more) <= 2 * math.hypot(spread / math.sqrt(PAPER_VALUES), ours.error):
        return None
    printed = 2 * math.hypot(spread, ours.error)
    also = "" if abs(more) > printed else " (not beyond two of the errors as printed)"
    return f"{more:+.2f} points{also}. Checked: {'; '.join(checks(summary))}"


def more_table(found: Sequence[Summary]) -> str:
    """Return a table of calibration, log-loss, bound, controls, time and memory."""
    head = [
        "cell",
        "scale",
        "log-loss, averaged",
        "calibration error, %",
        "bound on −log p(y∣x)",
        "accuracy after each step, %",
        "last block alone, %",
        "training, one process",
        "peak memory, MB",
        "cells at a time",
        "hardware",
    ]
    rows = []
    for dataset in DATASETS:
        for s in _sorted(x for x in found if x.cell.dataset == dataset):
            last = s.records[-1]
            loss = s.mean("test", "modes", last["test"]["default"], "log_loss")
            error = s.mean("test", "calibration_error")
            alone = s.mean("test", "last_block_alone", "accuracy")
            bound = s.mean("test", "elbo", "total")
            seconds, memory = (s.mean("training", k) for k in ("seconds", "peak_memory_mb"))
            beside = {str(record.get("beside", "?")) for record in s.records}
            rows.append(
                [
                    s.cell.name,
                    scale_text(s),
                    _plain(loss, ".4f"),
                    _plain(error and 100 * error, ".2f"),
                    _plain(bound, ".4g"),
                    _steps([record["test"]["steps"] for record in s.records]),
                    _plain(alone, ".1f"),
                    "–" if seconds is None else duration(seconds),
                    _plain(memory, ".0f"),
                    "/".join(sorted(beside)),
                    s.hardware,
                ]
            )
    return markdown(head, rows)


def _plain(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _steps(chains: Sequence[Sequence[float]]) -> str:
    """Return the mean over seeds, at no more than 20 levels."""
    means = [sum(column) / len(column) for column in zip(*chains, strict=True)]
    stride = max(1, (len(means) - 1) // 10)
    return " ".join(f"{value:.0f}" for value in means[::stride])


def memory_table(found: Sequence[Summary]) -> str:
    """Return Table 3; our memory is that of a GPU if one trained, else of the whole process."""
    head = ["data set", "method", "paper, GPU, GB", "ours, GB", "scale", "seeds", "counter"]
    rows = []
    for dataset in MEMORY_GB["ct"]:
        for method in METHODS:
            printed = _plain(MEMORY_GB[method].get(dataset), ".2f")
            name = [DATASETS[dataset], METHODS[method], printed]
            ours = [s for s in found if (s.cell.dataset, s.cell.method) == (dataset, method)]
            rows += [[*name, *row] for s in _sorted(ours) for row in _memory(s)] or [
                [*name, "not run", "", "", ""]
            ]
    return markdown(head, rows)


def _memory(summary: Summary) -> list[list[str]]:
    """Return a row for each counter of memory, with the greatest value over seeds."""
    peaks: dict[str, list[float]] = {}
    for record in summary.records:
        if training := record["training"]:
            peaks.setdefault(training["memory_counter"], []).append(training["peak_memory_mb"])
    return [
        [f"{max(values) / 1000:.2f}", scale_text(summary), str(len(values)), counter]
        for counter, values in peaks.items()
    ]


def result_text(record: Mapping[str, Any]) -> str:
    """Describe a record in one line: accuracy, the paper's accuracy, and the training time."""
    row, dataset = (record["method"], record["embedding"]), record["dataset"]
    paper = (TABLE1.get(row, {}) | TABLE2.get(row, {})).get(dataset)
    test = paper[1] if paper and record["readout"] == "softmax" else None
    printed = f" (the paper, at full scale: {test.mean:.2f} %)" if test else ""
    seconds = duration(record["training"].get("seconds", 0.0))
    return f"{accuracy_text(record['test'])}{printed}; trained in {seconds}"


def brief(found: Sequence[Summary]) -> list[list[str]]:
    """Return rows for a terminal: cell, scale, seeds × runs, one chain, averaged."""
    rows = []
    for dataset in DATASETS:
        for s in _sorted(x for x in found if x.cell.dataset == dataset):
            runs = f"{len(s.seeds)} × {s.runs}"
            ours = [_pm(s.accuracy(mode)) for mode in ("single", "default")]
            rows.append([s.cell.name, scale_text(s), runs, *ours])
    return rows
