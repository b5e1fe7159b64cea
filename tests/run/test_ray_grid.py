"""A grid of runs: one queue, one table, and a failure that stops nothing else."""

import json
from pathlib import Path

import pytest

import noprop
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError, RunError
from noprop.grid import summary
from noprop.run.metrics import read_metrics
from noprop.run.ray_engine import RayEngine
from noprop.training.events import Event

SMALL = {
    "method.num_blocks": 2,
    "method.encoder": "mlp",
    "data.train_size": 100,
    "train.epochs": 1,
    "train.workers": 1,
    "train.device": "cpu",
    "train.precision": "float32",
    "evaluation.runs": 2,
}
RECIPES = [
    replace(RunConfig(), {"recipe": "fixed", **SMALL}),
    replace(
        RunConfig(),
        {
            "recipe": "learned",
            **SMALL,
            "method.embedding": "orthogonal",
            "method.learned": True,
            "method.dim": 20,
        },
    ),
]


def accuracies(folder: Path) -> dict[str, float]:
    results = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/evaluation.json")}
    return {name: r["modes"][r["default"]]["accuracy"] for name, r in results.items()}


def test_two_recipes_by_two_seeds_in_one_queue(cluster, tmp_path):
    """The results are those of runs one after the other; what is finished is not trained again."""
    local = noprop.train_grid(RECIPES, [0, 1], folder=tmp_path / "local")
    events: list[Event] = []
    runs = noprop.train_grid(
        RECIPES, [0, 1], folder=tmp_path / "ray", engine=RayEngine(), emit=events.append
    )
    names = ["fixed-seed-0", "fixed-seed-1", "learned-seed-0", "learned-seed-1"]
    assert [run.name for run in runs] == names
    assert not [run.error for run in runs if run.error]
    assert accuracies(tmp_path / "ray") == accuracies(tmp_path / "local")
    measured = {"seconds", "peak_memory_mb"}
    ours, theirs = (
        {name: {k: v for k, v in row.items() if k not in measured} for name, row in rows.items()}
        for rows in (summary(runs), summary(local))
    )
    assert ours == theirs
    kinds = [(e.run, e.to_json()["event"]) for e in events if e.run]
    begun = [kinds.index((name, "started")) for name in names]
    assert max(begun) < min(i for i, (_, kind) in enumerate(kinds) if kind == "trained")
    assert {run for run, kind in kinds if kind == "finished"} == set(names)
    before = {name: read_metrics(tmp_path / "ray" / name) for name in names}
    noprop.train_grid(RECIPES, [0, 1], folder=tmp_path / "ray")
    assert {name: read_metrics(tmp_path / "ray" / name) for name in names} == before


def test_a_run_that_fails_does_not_stop_the_others(cluster, tmp_path):
    recipes = [replace(RECIPES[0], {"recipe": "wild", "train.lr": 1e30}), RECIPES[0]]
    (tmp_path / "fixed-seed-1").mkdir()
    (tmp_path / "fixed-seed-1" / "notes.txt").write_text("mine")
    runs = noprop.train_grid(recipes, [0, 1], folder=tmp_path, engine=RayEngine())
    assert ["not finite" in str(run.error) for run in runs] == [True, True, False, False]
    assert [run.results is not None for run in runs] == [False, False, True, False]
    assert isinstance(runs[3].error, RunError)
    assert summary(runs)["wild"]["accuracy"] is None
    assert summary(runs)["fixed"]["accuracy_se"] is None


def test_the_command_prints_a_table_and_status_1_for_a_failure(capsys, tmp_path):
    (tmp_path / "digits-dt-seed-1").mkdir()
    (tmp_path / "digits-dt-seed-1" / "notes.txt").write_text("mine")
    fields = [f"--set={name}={value}" for name, value in SMALL.items()]
    argv = ["grid", "digits-dt", "--seeds", "0..2", "--out", str(tmp_path), "--quiet", *fields]
    assert main([*argv, "--json"]) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err.startswith("noprop: error: digits-dt-seed-1: ")
    assert err.count("\n") == 1
    assert [run["seed"] for run in told["runs"] if "error" not in run] == [0, 2]
    a, b = (run["accuracy"] for run in told["runs"] if "error" not in run)
    row = told["recipes"]["digits-dt"]
    assert row["seeds"] == 2
    assert row["accuracy"] == pytest.approx((a + b) / 2)
    assert row["accuracy_se"] == pytest.approx(abs(a - b) / 2)
    assert main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["digits-dt", "2", f"{(a + b) / 2:.2f}"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["digits-dt", "--seeds", "a"], "--seeds: wanted seeds such as 0..4 or 0,3,7, got 'a'"),
        (["digits-dt", "--seeds", "4..0"], "--seeds: the range 4..0 is empty"),
        (["digits-dt", "digits-dt"], "grid: digits-dt-seed-0 is named twice"),
        (["digits-dx"], "unknown recipe 'digits-dx'"),
        (["digits-dt", "--set", "train.seed=3"], "train.seed: a grid has its seeds"),
        (["digits-dt", "--storage", "file:///x"], "--storage: is for --engine ray"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_trained(capsys, tmp_path, argv, words):
    assert main(["grid", *argv, "--out", str(tmp_path / "runs")]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"noprop: error: {words}")
    assert text.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_grid_of_nothing():
    with pytest.raises(ConfigError, match="grid: wanted a recipe and a seed at least"):
        noprop.train_grid([], [0])
