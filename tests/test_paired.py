"""The paired difference of two models: by hand, and by how often its interval covers the truth."""

import math

import numpy as np
import pytest

from noprop.paired import Answers, paired_difference


def answers(right: list[float], index: list[int] | None = None, label: int = 0) -> Answers:
    return Answers(
        np.array(index or range(len(right)), dtype=np.int64),
        np.full(len(right), label),
        np.array(right, dtype=np.float64),
    )


def test_a_difference_by_hand():
    """d = (0, 1, 0, 1): 50 points, variance 1/3, standard error √(1/12)."""
    found = paired_difference({3: answers([1, 0, 0, 0])}, {3: answers([1, 1, 0, 1])})
    assert found is not None
    assert (found.mean, found.examples, found.seeds) == (50, 4, 1)
    assert found.interval == pytest.approx(
        (50 - 195.9964 * math.sqrt(1 / 12), 50 + 195.9964 * math.sqrt(1 / 12))
    )


def test_only_what_both_answered_is_paired():
    first = {0: answers([1, 0, 1], [2, 5, 9]), 1: answers([1, 1, 1], [2, 5, 9])}
    other = {0: answers([0, 1, 1], [5, 9, 12]), 2: answers([1, 1, 1], [2, 5, 9])}
    found = paired_difference(first, other)
    assert found is not None
    assert (found.mean, found.interval, found.examples, found.seeds) == (0, (0, 0), 2, 1)
    assert paired_difference(first, {2: other[2]}) is None
    assert paired_difference(first, {0: answers([1], [12])}) is None


def test_examples_of_different_data_are_no_pair():
    """Of two data sets the examples have the same numbers: their labels tell them apart."""
    first, other = {0: answers([1, 0])}, {0: answers([1, 1], label=1)}
    assert paired_difference(first, other) is None
    assert paired_difference(first, {0: answers([1, 1]), 1: other[0]}) is not None
    first[1] = answers([1, 0])
    assert paired_difference(first, {0: answers([1, 1]), 1: other[0]}) is None


def test_seeds_add_their_own_variance():
    """Every example changes by as much with a seed: the seeds alone make the interval."""
    first = {seed: answers([0.0] * 4) for seed in range(2)}
    other = {0: answers([0.2] * 4), 1: answers([0.6] * 4)}
    found = paired_difference(first, other)
    assert found is not None
    assert found.mean == pytest.approx(40)
    half = 195.9964 * math.sqrt(0.08 / 2)
    assert found.interval == pytest.approx((40 - half, 40 + half))


def test_the_interval_covers_the_truth():
    """Of 400 test parts of 300 examples, 95 % are expected to; below 91 % has probability < 1e-3.

    Unpaired intervals would be twice as wide: they are shown to be so.
    """
    rng, covered, widths = np.random.default_rng(0), 0, []
    for _ in range(400):
        easy = rng.random(300) < 0.8  # both are right
        a, b = easy | (rng.random(300) < 0.3), easy | (rng.random(300) < 0.5)
        found = paired_difference(
            {0: answers(a.astype(float).tolist())}, {0: answers(b.astype(float).tolist())}
        )
        assert found is not None
        assert found.interval is not None
        low, high = found.interval
        covered += low <= 100 * 0.2 * 0.2 <= high
        separate = math.sqrt(a.mean() * (1 - a.mean()) / 300 + b.mean() * (1 - b.mean()) / 300)
        widths.append((high - low) / (2 * 195.9964 * separate))
    assert 0.91 < covered / 400 < 0.985
    assert np.mean(widths) < 0.8
