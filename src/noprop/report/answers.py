"""The answers of an evaluation as pictures and rows: confusion matrix, reliability, mistakes."""

from typing import Any

import torch
from torch import Tensor

from noprop.averaging import reliability, wilson_interval
from noprop.data import Examples
from noprop.predictions import Predictions
from noprop.report.pictures import MANY_CLASSES, draw_image, short

__all__ = [
    "MISTAKES",
    "class_rows",
    "draw_confusion",
    "draw_mistakes",
    "draw_reliability",
    "mistake_rows",
]

MISTAKES = 10  # shown
COLUMNS = 5  # of them side by side
BINS = 15  # of the calibration error
LONGEST_NAME = 24  # characters of a file's name, of which the last are shown
NAMED = 12  # classes of the part of a large confusion matrix that is shown with names
STRONG = 0.1  # a mistake in this share of a class has the strongest red, unless others have more


# -- the confusion matrix --------------------------------------------------------------------------


def draw_confusion(figure: Any, found: Predictions, names: tuple[str, ...]) -> None:
    """Draw the counts of true and predicted classes; of many, all as a map, and the worst by name.

    Correct answers are blue, mistakes red, so that a few mistakes are seen beside many correct
    answers.
    """
    counts = found.confusion(len(names))
    if len(names) <= MANY_CLASSES:
        side, long = max(4.4, 0.42 * len(names) + 1.0), max(map(len, names)) > 2
        figure.set_size_inches(side + 0.6 * long, side + 0.4 * long)
        axis = figure.subplots()
        _numbers(axis, counts, [short(name, 14) for name in names], _shares(counts))
        axis.set_title("examples by true and predicted class", size=11)
        return
    figure.set_size_inches(9, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    left.imshow(_colors(_shares(counts), power=0.5), interpolation="nearest")
    left.set(xlabel="predicted class", ylabel="true class")
    left.set_title(f"all {len(names)} classes, by number", size=11)
    worst = _most_confused(counts)
    labels = [names[i] if names[i] == str(i) else f"{i} {short(names[i], 14)}" for i in worst]
    _numbers(right, counts[worst][:, worst], labels, _shares(counts)[worst][:, worst])
    right.set_title("classes of the most frequent mistakes", size=11)


def _shares(counts: Tensor) -> Tensor:
    """Return the share of each prediction among the examples of its true class."""
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)


def _numbers(axis: Any, counts: Tensor, labels: list[str], shares: Tensor) -> None:
    """Draw a matrix with its counts as numbers, correct answers blue and mistakes red."""
    size = len(labels)
    small = 9.0 if size <= NAMED else 7.5
    axis.imshow(_colors(shares), interpolation="nearest")
    for i in range(size):
        for j in range(size):
            if count := int(counts[i, j]):
                color = "white" if i == j and shares[i, j] > 0.5 else "black"
                where: dict[str, Any] = {"ha": "center", "va": "center", "size": small - 1}
                axis.text(j, i, _count(count), color=color, **where)
    rotation = 90 if max(map(len, labels)) > 2 else 0
    axis.set_xticks(range(size), labels, rotation=rotation, fontsize=small)
    axis.set_yticks(range(size), labels, fontsize=small)
    axis.set(xlabel="predicted class", ylabel="true class")
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks([k - 0.5 for k in range(1, size)], minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="both", length=0)


def _count(number: int) -> str:
    """Return a count that fits a cell: 12345 as 12k."""
    return str(number) if number < 10_000 else f"{number / 1000:.0f}k"


def _colors(shares: Tensor, power: float = 1.0) -> Any:
    """Return the colors of a matrix: blues on its diagonal, reds elsewhere; empty cells are pale.

    Args:
        shares: Shares of each row, shape (m, m).
        power: Exponent of the reds; below 1 single mistakes are stronger.
    """
    import matplotlib

    right = torch.eye(len(shares), dtype=torch.bool)
    wrong = shares.masked_fill(right, 0.0)
    strength = (wrong / wrong.max().clamp_min(STRONG)) ** power
    blue = matplotlib.colormaps["Blues"]((0.15 + 0.7 * shares).numpy())
    red = matplotlib.colormaps["Reds"]((0.1 + 0.5 * strength).numpy())
    colors = torch.where(right[:, :, None], torch.as_tensor(blue), torch.as_tensor(red))
    colors[(shares == 0) & ~right] = torch.tensor([0.965, 0.965, 0.965, 1.0], dtype=colors.dtype)
    return colors.numpy()


def _most_confused(counts: Tensor) -> list[int]:
    """Return the classes of the most frequent mistakes, in ascending order."""
    wrong = counts.clone().fill_diagonal_(0).flatten()
    chosen: set[int] = set()
    for pair in wrong.argsort(descending=True, stable=True)[: NAMED**2].tolist():
        both = {pair // len(counts), pair % len(counts)}
        if len(chosen | both) > NAMED:
            break
        if wrong[pair] > 0:
            chosen |= both
    return sorted(chosen) or list(range(NAMED))


# -- reliability -----------------------------------------------------------------------------------


def draw_reliability(figure: Any, found: Predictions) -> None:
    """Draw accuracy over confidence, and below it how many examples have each confidence."""
    figure.set_size_inches(6.4, 5.0)
    counts, confidences, correct = reliability(found.confidence, found.correct, BINS)
    error = (correct - confidences).abs().sum().item() / len(found)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    occupied = (counts > 0).nonzero()[:, 0].tolist()
    x = [100 * (confidences[b] / counts[b]).item() for b in occupied]
    y = [100 * (correct[b] / counts[b]).item() for b in occupied]
    bounds = [
        [100 * end for end in wilson_interval(share / 100, int(counts[b]))]
        for share, b in zip(y, occupied, strict=True)
    ]
    spread = [
        [abs(share - end[side]) for share, end in zip(y, bounds, strict=True)] for side in (0, 1)
    ]
    upper.plot([0, 100], [0, 100], color="grey", linestyle=":", label="calibrated")
    label = "examples of a bin, 95 % interval"
    upper.errorbar(x, y, yerr=spread, fmt="o", color="C0", capsize=2, lw=1.2, label=label)
    upper.set(
        ylabel="accuracy %", ylim=(-2, 102), title=f"expected calibration error {100 * error:.2f} %"
    )
    edges = [100 * (b + 0.5) / BINS for b in range(BINS)]
    lower.bar(edges, counts.tolist(), width=100 / BINS * 0.9, color="C0")
    lower.set(
        xlabel="confidence %: probability of the predicted class",
        ylabel="examples",
        yscale="log",
        xlim=(0, 101),
    )
    lower.set_ylim(0.5, None)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)


# -- mistakes --------------------------------------------------------------------------------------


def draw_mistakes(
    figure: Any, found: Predictions, names: tuple[str, ...], examples: Examples
) -> None:
    """Draw the images of the most confident mistakes, with both classes and probabilities."""
    inside = found.index < len(examples)
    if not bool(inside.all()) or not torch.equal(examples.y.cpu()[found.index], found.y):
        raise ValueError("the data are not those of the evaluation")
    chosen = found.mistakes(MISTAKES).tolist()
    rows = -(-len(chosen) // COLUMNS)
    figure.set_size_inches(9, 2.45 * rows)
    figure.get_layout_engine().set(h_pad=0.08)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, chosen, strict=False):
        draw_image(axis, examples.x[int(found.index[i])].cpu())
        predicted = f"{short(names[found.label[i]], 12)} ({_percent(found.confidence[i])})"
        true = f"{short(names[found.y[i]], 12)} ({_percent(found.likelihood[i])})"
        name = found.name(i)
        name = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
        axis.set_title(
            f"predicted {predicted}\ntrue {true}\n{short(name, LONGEST_NAME)}", fontsize=8
        )


def _percent(p: Tensor) -> str:
    """Return a probability in percent, which is never rounded to 0 or 100."""
    value = 100 * float(p)
    return "<0.1 %" if value < 0.1 else ">99.9 %" if value > 99.9 else f"{value:.1f} %"


# -- rows of tables --------------------------------------------------------------------------------


def mistake_rows(found: Predictions, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the most confident mistakes, each with the name of its example."""
    return [
        {
            "name": found.name(i),
            "true": names[found.y[i]],
            "predicted": names[found.label[i]],
            "confidence": _percent(found.confidence[i]),
            "likelihood": _percent(found.likelihood[i]),
        }
        for i in found.mistakes(MISTAKES).tolist()
    ]


def class_rows(found: Predictions, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the accuracy of each class: its examples, correct ones, and its main mistake."""
    counts = found.confusion(len(names))
    rows = []
    for label, (name, row) in enumerate(zip(names, counts, strict=True)):
        total, correct = int(row.sum()), int(row[label])
        wrong = row.clone()
        wrong[label] = 0
        main = int(wrong.argmax())
        low, high = wilson_interval(correct / total, total) if total else (0.0, 1.0)
        rows.append(
            {
                "name": name,
                "examples": total,
                "correct": correct,
                "accuracy": 100 * correct / total if total else None,
                "interval": f"{100 * low:.1f} to {100 * high:.1f}" if total else "",
                "mistake": f"{names[main]} ({int(wrong[main])})" if wrong[main] else "",
            }
        )
    return rows
