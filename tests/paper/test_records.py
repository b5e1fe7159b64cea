"""Lines of results: pooled exactly, grouped by what was done, and refused when they are none."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from made_records import made
from noprop.errors import RunError
from noprop.paper.records import add_record, pooled, read_records, summaries

groups = st.lists(
    st.lists(st.floats(0, 100), min_size=2, max_size=6), min_size=1, max_size=5
)  # runs of each seed


@given(groups)
def test_pooling_gives_the_mean_and_error_of_all_values(values):
    """From each seed's mean, standard error and n alone."""
    parts = []
    for group in values:
        v = torch.tensor(group, dtype=torch.float64)
        parts.append((v.mean().item(), (v.std() / math.sqrt(len(v))).item(), len(v)))
    all_values = torch.tensor([v for group in values for v in group], dtype=torch.float64)
    number = pooled(parts)
    assert number.mean == pytest.approx(all_values.mean().item(), abs=1e-9)
    error = all_values.std() / math.sqrt(len(all_values))
    assert number.error == pytest.approx(error.item(), abs=1e-6)


def test_a_lone_value_has_no_error():
    assert math.isnan(pooled([(50.0, 0.0, 1)]).error)


def test_what_was_done_to_another_extent_is_another_result():
    full, short = made(), made(scale="epochs=0.1", epochs=10)
    part = made(train=18_000, seed=1)  # full epochs, but a part of the images
    found = summaries([full, short, part, made(seed=2)])
    assert [(s.seeds, s.is_full) for s in found] == [((0, 2), True), ((0,), False), ((1,), False)]


def test_the_last_line_of_a_seed_counts():
    (one,) = summaries([made(single=10.0), made(single=90.0)])
    accuracy = one.accuracy("single")
    assert accuracy
    assert (accuracy.mean, one.seeds) == (90.0, (0,))


def test_lines_are_read_back_and_anything_else_is_refused(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    assert read_records(path) == []
    for seed in (0, 1):
        add_record(path, made(seed=seed))
    assert [r["seed"] for r in read_records(path)] == [0, 1]
    lacking = {k: v for k, v in made().items() if k != "extent"}
    for record in ([1], {"cell": "x"}, lacking, {**made(), "test": {"modes": {}}}):
        path.write_text(json.dumps(made()) + "\n" + json.dumps(record) + "\n")
        with pytest.raises(RunError, match=r"results\.jsonl: line 2 is not a result of a cell"):
            read_records(path)


def test_a_line_cut_short_is_a_cell_that_is_not_done(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(made()) + "\n" + json.dumps(made(seed=1))[:200])
    add_record(path, made(seed=2))
    assert [r["seed"] for r in read_records(path)] == [0, 2]


def test_equal_runs_of_a_seed_count_as_one():
    """Chains without noise give a seed one value: 97, 98 and 99 have an error of 1/√3."""
    records = [made(seed=i, single=97.0 + i, error=0.0) for i in range(3)]
    (summary,) = summaries(records)
    number = summary.accuracy("mean")
    assert number
    assert (number.mean, number.error) == (98.0, pytest.approx(1 / math.sqrt(3)))
    (one,) = summaries(records[:1])
    alone = one.accuracy("mean")
    assert alone
    assert math.isnan(alone.error)


def test_fewer_runs_or_chains_are_not_full_and_hardware_stands_apart():
    short, lone, other = made(), made(), made()
    short["test"] = short["test"] | {"runs": 2}
    lone["test"] = lone["test"] | {"samples": 1}
    other["environment"] = other["environment"] | {"gpu": "a GPU"}
    found = summaries([made(), short, lone, other])
    assert [s.is_full for s in found] == [True, False, False, True]
    assert [s.hardware for s in found] == ["a processor"] * 3 + ["a GPU"]
    (more,) = summaries([made(train=60_000)])
    assert more.is_full  # nothing is held out
