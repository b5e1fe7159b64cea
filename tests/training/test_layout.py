"""Which process has which units: all of them once, in little time, with little to send."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noprop.config import RunConfig, replace
from noprop.training.layout import choose_layout, deal, unit_costs

COSTS = st.lists(st.floats(0.01, 3), min_size=1, max_size=7)


def configured(**changes) -> RunConfig:
    blocks = {} if "method.name" in changes else {"method.num_blocks": 10}
    return replace(RunConfig(), {**blocks, **changes})


def slowest(costs: dict[str, float], shares) -> float:
    return max(sum(costs[name] for name in share) for share in shares)


def partitions(names: list[str], places: int):
    """Every way to cut a list into at most so many parts."""
    for n in range(min(places, len(names))):
        for cuts in itertools.combinations(range(1, len(names)), n):
            ends = [0, *cuts, len(names)]
            yield [names[a:b] for a, b in itertools.pairwise(ends)]


@given(COSTS, st.integers(1, 9), st.booleans())
def test_every_unit_is_dealt_once(values, places, neighbours):
    costs = {f"u{i}": v for i, v in enumerate(values)}
    shares = deal(costs, places, neighbours=neighbours)
    assert sorted(n for share in shares for n in share) == sorted(costs)
    assert 1 <= len(shares) <= places
    assert all(share and list(share) == [n for n in costs if n in share] for share in shares)
    if neighbours:
        assert [n for share in shares for n in share] == list(costs)


@given(COSTS, st.integers(1, 5))
def test_neighbours_are_cut_in_the_best_places(values, places):
    """By trying every way to cut."""
    costs = {f"u{i}": v for i, v in enumerate(values)}
    best = min(slowest(costs, cut) for cut in partitions(list(costs), places))
    assert slowest(costs, deal(costs, places, neighbours=True)) <= best * (1 + 1e-6)


@given(COSTS, st.integers(1, 4))
def test_the_largest_first_is_within_a_third_of_the_best(values, places):
    """Graham's bound, 4/3 - 1/(3 p), against every way to deal."""
    costs = {f"u{i}": v for i, v in enumerate(values)}
    ways = itertools.product(range(places), repeat=len(costs))
    best = min(
        max(sum(v for v, at in zip(values, way, strict=True) if at == p) for p in range(places))
        for way in ways
    )
    bound = best * (4 / 3 - 1 / (3 * places)) * (1 + 1e-9)
    assert slowest(costs, deal(costs, places)) <= bound


@pytest.mark.parametrize("changes", [{}, {"method.embedding": "orthogonal", "method.learned": True,
                                          "train.order": "parallel"}])  # fmt: skip
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 11, 12, 13, 19])
def test_no_two_share_a_unit_while_units_are_left(changes, processes):
    layout = choose_layout(configured(**changes), processes)
    assert layout.data == layout.shards == 1
    assert layout.size == len(layout.shares) <= min(processes, 11)
    assert sorted(sum(layout.shares, ())) == sorted(configured().method.unit_names)


@pytest.mark.parametrize(("processes", "data"), [(22, 2), (33, 3), (44, 4), (1000, 64)])
def test_the_rest_go_to_the_data_axis(processes, data):
    """At most so many that a shard has two examples."""
    layout = choose_layout(configured(), processes)
    assert (len(layout.shares), layout.data, layout.shards) == (11, data, data)


def test_where_all_units_are_one_group_all_go_to_the_data_axis():
    """In sequential order learned embeddings let one block be trained at a time."""
    learned = {"method.embedding": "orthogonal", "method.learned": True}
    for config in (configured(**learned), configured(**{"method.name": "ct"})):
        layout = choose_layout(config, 3)
        assert layout.data == layout.shards == layout.size == 3
        assert set(layout.shares[0]) == set(config.method.unit_names)
    assert choose_layout(configured(**learned, **{"train.offload": True}), 3).size == 1


@pytest.mark.parametrize(("shards", "processes", "data"), [(1, 8, 1), (4, 3, 2), (6, 8, 6)])
def test_shards_are_those_that_were_asked_for(shards, processes, data):
    """Processes that would have unequal numbers of them are left idle."""
    layout = choose_layout(configured(**{"method.name": "ct"}), processes, shards=shards)
    assert (layout.data, layout.shards) == (data, shards)


def test_what_is_trained_is_not_dealt():
    left = ["block-3", "block-9", "readout"]
    layout = choose_layout(configured(), 2, left)
    assert sorted(sum(layout.shares, ())) == left


def test_a_readout_costs_its_passes():
    """Once a block in Algorithm 1, once a mini-batch in parallel order."""
    sequential = unit_costs(configured())
    parallel = unit_costs(configured(**{"train.order": "parallel"}))
    assert sequential["readout"] == pytest.approx(10 * parallel["readout"])
    assert sequential["block-1"] == parallel["block-1"] == 1


def test_ranks_go_along_data_first():
    layout = choose_layout(configured(), 22)
    assert layout.share(0) == layout.share(1) != layout.share(2)
