"""What the events of a run tell of its cost."""

import json
from pathlib import Path
from typing import Any

import pytest

from noprop.report.tables import evaluation_text
from noprop.run.metrics import training_cost


def write(folder: Path, *events: tuple[float, str, dict[str, Any]]) -> Path:
    lines = [json.dumps({"time": t, "event": name, **more}) for t, name, more in events]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def trained(time: float, unit: str, seconds: float) -> tuple[float, str, dict[str, Any]]:
    memory = {"peak_memory_mb": 100.0, "memory_counter": "counter"}
    return time, "trained", {"units": [unit], "seconds": seconds, **memory}


START = (100.0, "started", {"workers": 2})


@pytest.mark.parametrize(
    ("events", "seconds", "wall"),
    [
        # Two workers at once; both waited ten seconds.
        ([START, trained(115.0, "a", 5.0), trained(118.0, "b", 8.0)], 13.0, 8.0),
        # One after the other, with a queue before each.
        ([START, trained(120.0, "a", 5.0), trained(150.0, "b", 10.0)], 15.0, 15.0),
        # The second was begun by an earlier process, 20 seconds before it was lost.
        (
            [
                (60.0, "started", {"workers": 1}),
                (80.0, "epoch", {}),
                START,
                trained(110.0, "b", 30.0),
                trained(104.0, "a", 2.0),
            ],
            32.0,
            20.0 + 10.0,
        ),
        # Resumed an hour later, when the first unit was found to be trained.
        (
            [
                START,
                trained(105.0, "a", 5.0),
                (3700.0, "found", {"unit": "a"}),
                (3701.0, "started", {"workers": 1}),
                trained(3703.0, "b", 2.0),
            ],
            7.0,
            5.0 + 2.0,
        ),
        # Nothing ended since the last start.
        ([trained(90.0, "a", 5.0), START, (107.0, "epoch", {})], 5.0, 7.0),
    ],
)
def test_wall_time_is_that_of_training_and_not_of_waiting(tmp_path, events, seconds, wall):
    cost = training_cost(write(tmp_path, *events))
    assert (cost["seconds"], cost["wall_seconds"], cost["workers"]) == (seconds, wall, 2)


def test_the_method_and_not_its_modes_decides_between_chains_and_answers():
    """An evaluation may leave out the averages of chains; an older one has no names of answers."""
    score = {"accuracy": 50.0, "accuracy_se": None, "log_loss": 1.0, "log_loss_se": None}
    results = {"modes": {"single": score}, "default": "single", "steps": [10, 50], "times": [0, 1]}
    results |= {"evaluations": 1.0, "examples": 9, "runs": 1, "part": "test"}
    for method, words in (
        ("dt", "accuracy % of one chain by the nearest embedding: 10 50"),
        ("dfa", "the last answer *"),
    ):
        text = evaluation_text(results | {"method": method})
        assert words in text
        assert ("chain" in text) == (method == "dt")
    results |= {"method": "ff", "steps": [10.0, 40.0, 50.0], "answers": ["softmax", "goodness"]}
    rows = [line.split() for line in evaluation_text(results).splitlines()]
    assert ["goodness", "*", "50.00", "1.0000"] in rows
    assert rows[rows.index(["answer", "accuracy", "%"]) + 2 :][:2] == [
        ["softmax", "40.00"],
        ["goodness", "50.00"],
    ]
