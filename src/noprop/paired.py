r"""The difference of the accuracies of two models on the same test examples, with its interval.

Both models answer the same examples, most of which both find easy. So the variance is that of the
differences $d_i$ of each example, which is far below that of two separate test parts.

With runs of several seeds, $d_i$ is the mean over the seeds, and the variance between the seeds'
mean differences is added: :math:`s_i^2 / n + s_s^2 / S`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["Answers", "Difference", "paired_difference"]

QUANTILE = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Answers:
    """How often a model is right on each test example.

    Attributes:
        index: Number of each example in the test part, shape (n,), ascending.
        y: Its label, shape (n,).
        right: 1 if its answer is right, else 0, or a mean of such numbers, shape (n,).
    """

    index: Int64[np.ndarray, " n"]
    y: Int64[np.ndarray, " n"]
    right: Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies in percentage points.

    Attributes:
        mean: The difference.
        interval: Ends of its 95 % interval; None from a single example.
        examples: Number of test examples that both models answered.
        seeds: Number of seeds that both rows have.
    """

    mean: float
    interval: tuple[float, float] | None
    examples: int
    seeds: int


def paired_difference(
    first: Mapping[int, Answers], other: Mapping[int, Answers]
) -> Difference | None:
    """Return how much more accurate ``other`` is than ``first``, or None without a pair.

    Examples with the same index and different labels are those of different data: no pair.

    Args:
        first: Answers of the runs to compare with, by seed.
        other: Answers of the other runs, by seed.

    Example:
        Both are right on 90 of 100 examples, but on different ones:

        >>> index, y = np.arange(100), np.zeros(100, dtype=np.int64)
        >>> first = Answers(index, y, (index >= 10).astype(float))
        >>> other = Answers(index, y, (index < 90).astype(float))
        >>> difference = paired_difference({0: first}, {0: other})
        >>> difference.mean, [round(end, 1) for end in difference.interval]
        (0.0, [-8.8, 8.8])
    """
    seeds = sorted(first.keys() & other.keys())
    every = [first[seed] for seed in seeds] + [other[seed] for seed in seeds]
    if not every:
        return None
    common = every[0].index
    for answers in every[1:]:
        common = np.intersect1d(common, answers.index, assume_unique=True)
    n = len(common)
    labels = [answers.y[_at(answers, common)] for answers in every]
    if n == 0 or any((y != labels[0]).any() for y in labels):
        return None
    right = [answers.right[_at(answers, common)] for answers in every]
    rows = [b - a for a, b in zip(right[: len(seeds)], right[len(seeds) :], strict=True)]
    means = [float(row.mean()) for row in rows]
    over_seeds = np.mean(rows, axis=0)
    variance = _variance(over_seeds.tolist()) / n + _variance(means) / len(seeds)
    mean, half = 100 * float(over_seeds.mean()), 100 * QUANTILE * math.sqrt(variance)
    interval = (mean - half, mean + half) if n > 1 else None
    return Difference(mean, interval, n, len(seeds))


def _at(answers: Answers, index: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Return the positions of examples that are among those of the answers."""
    return np.searchsorted(answers.index, index)


def _variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
