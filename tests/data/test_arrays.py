"""Parts of a data set: disjoint, complete, stratified, and the same for the same seed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noprop.data import Dataset, Examples, hold_out, stratified_split
from noprop.data.arrays import split_off_test
from noprop.errors import DataError

labels = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(torch.tensor)
fractions = st.floats(0, 1, exclude_max=True)


def features(y: torch.Tensor) -> Examples:
    """Examples whose input is their own index, so that one can tell who went where."""
    return Examples(torch.arange(len(y), dtype=torch.float32)[:, None], y)


@given(labels, fractions, st.integers(0, 3))
def test_a_split_is_a_partition_in_ascending_order(y, fraction, seed):
    kept, held_out = stratified_split(y, fraction, seed)
    assert torch.cat([kept, held_out]).sort().values.equal(torch.arange(len(y)))
    assert bool((kept.diff() > 0).all())
    assert bool((held_out.diff() > 0).all())


@given(labels, fractions, st.integers(0, 3))
def test_each_class_gives_its_share_and_keeps_an_example(y, fraction, seed):
    """Largest remainder: within one of the share; a class with examples keeps at least one."""
    kept, held_out = stratified_split(y, fraction, seed)
    for label in y.unique():
        count = int((y == label).sum())
        given_away = int((y[held_out] == label).sum())
        assert math.floor(fraction * count) <= given_away <= math.ceil(fraction * count)
        assert bool((y[kept] == label).any())


@given(st.lists(st.integers(10, 40), min_size=1, max_size=6), st.floats(0, 0.85))
def test_the_total_is_exact_where_classes_are_not_tiny(counts, fraction):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    _, held_out = stratified_split(y, fraction, seed=0)
    assert len(held_out) == round(fraction * len(y))


def test_largest_remainders_are_served_first():
    """Shares 1.0, 1.4 and 0.6 of a total of 3: the 0.6 is rounded up, not the 1.4."""
    y = torch.tensor([0] * 5 + [1] * 7 + [2] * 3)
    _, held_out = stratified_split(y, 0.2, seed=0)
    assert torch.bincount(y[held_out]).tolist() == [1, 1, 1]


def test_a_class_of_one_is_never_held_out():
    y = torch.tensor([0, 1, 1, 1, 1])
    for seed in range(20):
        kept, _ = stratified_split(y, 0.9, seed)
        assert 0 in kept


def test_the_seed_decides_who_is_held_out():
    y = torch.arange(100) % 4
    first, again, other = (stratified_split(y, 0.25, seed)[1] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_every_member_can_be_held_out():
    """Taking the first of each class, without shuffling, would hold out the same ones always."""
    y = torch.arange(40) % 4
    seen = {int(i) for seed in range(60) for i in stratified_split(y, 0.25, seed)[1]}
    # An example is missed by one seed with probability ~3/4 and by all 60 with ~3e-8.
    assert seen == set(range(40))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        stratified_split(torch.tensor([0, 1]), fraction, 0)


def test_hold_out_takes_from_training_and_leaves_the_test_part():
    whole = features(torch.arange(60) % 3)
    dataset = split_off_test("toy", whole, ("a", "b", "c"))
    for seed in (0, 1):
        splits = hold_out(dataset, 0.25, seed)
        assert splits.test is dataset.test
        parts = [splits.train.x, splits.validation.x, splits.test.x]
        assert [len(part) for part in parts] == [36, 12, 12]
        assert torch.cat(parts)[:, 0].sort().values.equal(whole.x[:, 0])
        for part in (splits.train, splits.validation, splits.test):
            assert part.y.equal(part.x[:, 0].long() % 3)  # inputs kept their labels
    assert len(hold_out(dataset, 0.0, 0).validation) == 0


def test_a_smaller_test_part_is_stratified_and_the_same_for_every_seed():
    whole = features(torch.arange(600) % 3)
    dataset = split_off_test("toy", whole, ("a", "b", "c"))
    parts = [hold_out(dataset, 0.1, seed, test_size=30).test for seed in (0, 1)]
    assert torch.bincount(parts[0].y).tolist() == [10, 10, 10]
    assert parts[0].x.equal(parts[1].x)
    inside = set(dataset.test.x[:, 0].tolist())
    assert set(parts[0].x[:, 0].tolist()) < inside
    assert hold_out(dataset, 0.1, 0, test_size=500).test is dataset.test


def test_a_source_too_small_for_a_test_part_is_refused():
    with pytest.raises(DataError, match=r"toy: 2 examples of \d classes are too few"):
        split_off_test("toy", features(torch.tensor([0, 1])), ("a", "b"))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), "3 examples came with 2 labels"),
        (torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 1]), "float64"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), "uint8 images"),
        (torch.zeros(2), torch.tensor([0, 1]), "float32 features"),
        (torch.zeros(2, 2), torch.tensor([0, 1], dtype=torch.int32), "int64"),
        (torch.zeros(2, 2), torch.tensor([[0], [1]]), "int64"),
    ],
)
def test_examples_that_do_not_fit_together_are_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        Examples(x, y)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0], "training labels lie in 0..2, wanted 0..1"),
        ([0, 1], [2], "test labels lie in 2..2"),
        ([0, -1], [0], "training labels lie in -1..0"),
        ([0, 0], [1], r"class 1 \(b\) has no training example"),
        ([0, 1], [], "test part is empty"),
    ],
)
def test_a_data_set_checks_its_labels(train, test, message):
    def examples(y):
        return features(torch.tensor(y, dtype=torch.int64))

    with pytest.raises(DataError, match=message):
        Dataset("toy", examples(train), examples(test), ("a", "b"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "toy: has 1 class, wanted 2 to 10,000"),
        (("a",) * 10_001, "toy: has 10001 classes, wanted 2 to 10,000"),
        (("a", "b" * 256), "a class name has 256 characters, wanted at most 255: 'b{40}'…"),
    ],
)
def test_class_names_are_limited_in_number_and_length(names, message):
    y = torch.arange(len(names))
    with pytest.raises(DataError, match=message):
        Dataset("toy", features(y), features(y), names)


def test_parts_of_different_shape_are_refused():
    y = torch.tensor([0, 1])
    with pytest.raises(DataError, match=r"float32 \(3,\) but test examples are float32 \(4,\)"):
        Dataset("toy", Examples(torch.zeros(2, 3), y), Examples(torch.zeros(2, 4), y), ("a", "b"))
