"""Grids of values: which runs there are, and what a killed one keeps."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import noprop
from noprop.cli import main
from noprop.errors import ConfigError
from noprop.grid import _answers, _planned, summary
from noprop.predictions import FILE, predictions_of, read_predictions, save_predictions
from noprop.report.tables import grid_text
from noprop.run.metrics import read_metrics
from noprop.training.events import Event, Grid, Trained
from tools import SMALL, Killed


def planned(
    recipes: list[str], overrides: dict[str, Any], lists: dict[str, list[Any]]
) -> dict[str, Any]:
    runs = _planned(recipes, [0], Path("runs"), overrides, lists)
    return {run.recipe: run for run in runs}


def test_values_are_combined_and_name_their_runs():
    lists = {"train.lr": [1e-3, 3e-4], "data.normalization": ["unit", "standard"]}
    runs = planned(["digits-dt"], {"train.epochs": 2}, lists)
    assert list(runs) == [
        "digits-dt-lr-0.001-normalization-unit",
        "digits-dt-lr-0.001-normalization-standard",
        "digits-dt-lr-0.0003-normalization-unit",
        "digits-dt-lr-0.0003-normalization-standard",
    ]
    config = runs["digits-dt-lr-0.0003-normalization-unit"].config
    assert (config.train.lr, config.data.normalization, config.train.epochs) == (3e-4, "unit", 2)
    assert config.recipe == "digits-dt-lr-0.0003-normalization-unit"
    long = planned(["digits-dt"], {}, {"data.dataset": ["a" * 200, "b" * 200]})
    assert len(long) == 2
    assert all(len(name) <= 80 for name in long)


def test_a_field_of_one_method_is_applied_to_that_alone():
    lists = {"method.name": ["dt", "ct"], "method.num_blocks": [4, 10]}
    runs = planned(["digits-dt"], {}, lists)
    assert {name: run.skipped for name, run in runs.items()} == {
        "digits-dt-method-dt-num_blocks-4": (),
        "digits-dt-method-dt-num_blocks-10": (),
        "digits-dt-method-ct": ("method.num_blocks",),
    }
    mixed = planned(["digits-dt", "digits-ct"], {"method.num_blocks": 3}, {})
    assert mixed["digits-dt"].config.method.num_blocks == 3
    assert mixed["digits-ct"].skipped == ("method.num_blocks",)
    with pytest.raises(ConfigError, match=r"method\.steps: is not a field of dt; it belongs to ct"):
        planned(["digits-dt"], {}, {"method.steps": [3, 4]})
    with pytest.raises(ConfigError, match=r"unknown field method\.step_"):
        planned(["digits-dt"], {"method.step_": 3}, {})
    with pytest.raises(ConfigError, match=r"method\.name: wanted one of dt, "):
        planned(["digits-dt"], {}, {"method.name": ["dt", "xt"]})
    with pytest.raises(ConfigError, match=r"train\.seed: a grid has its seeds"):
        planned(["digits-dt"], {}, {"train.seed": [1, 2]})


def right(folder: Path) -> Any:
    found = read_predictions(folder, 10)
    assert found is not None
    return found[0].correct.double()


def test_a_killed_grid_loses_no_finished_run_and_ends_with_the_same_results(tmp_path):
    lists = {"method.name": ["dt", "backprop"], "train.lr": [1e-3, 3e-3]}
    changes = {**SMALL, "method.num_blocks": 1, "data.train_size": 60}

    def grid(folder: Path, emit: Any) -> list[Any]:
        return noprop.train_grid(
            ["digits-dt"], [0], folder=folder, overrides=changes, lists=lists, emit=emit
        )

    events: list[Event] = []
    whole = grid(tmp_path / "whole", events.append)
    assert not [run.error for run in whole if run.error]
    assert isinstance(events[0], Grid)
    trained = 0

    def kill(event: Event) -> None:
        nonlocal trained
        trained += isinstance(event, Trained)
        if trained == 4:  # in the second run: a block and the readout each
            raise Killed

    with pytest.raises(Killed):
        grid(tmp_path / "cut", kill)
    first = tmp_path / "cut" / whole[0].name
    before = (first / "metrics.jsonl").read_bytes()
    again = grid(tmp_path / "cut", lambda event: None)
    assert (first / "metrics.jsonl").read_bytes() == before
    accuracy = [run.results["modes"] for run in again]
    assert accuracy == [run.results["modes"] for run in whole]
    table = summary(again)
    rows = list(table.values())
    assert rows[0]["difference"] is None
    assert [row["difference"]["examples"] for row in rows[1:]] == [359] * 3
    for run, row in zip(again, rows, strict=True):
        correct = right(run.folder)
        shift = 100 * float((correct - right(again[0].folder)).mean())
        assert row["difference"] is None or row["difference"]["mean"] == pytest.approx(shift)
        model = noprop.load(run.folder)
        assert row["parameters"] == sum(p.numel() for p in model.method.parameters())
        assert row["seconds"] == pytest.approx(
            sum(e["seconds"] for e in read_metrics(run.folder) if e["event"] == "trained")
        )
    text = grid_text(table)
    assert "on the same 359 test examples" in text
    assert "paired over them, one seed; of the first inference run alone" in text
    (again[1].folder / FILE).write_bytes(b"x")
    assert list(summary(again).values())[1]["difference"] is None


def test_the_memory_of_a_row_is_that_of_its_largest_process(tmp_path):
    """And its time the mean over the seeds."""
    runs = _planned(["digits-dt"], [0, 1], tmp_path, {}, {})
    for run, megabytes in zip(runs, (300.0, 100.0), strict=True):
        cost = {"peak_memory_mb": megabytes, "seconds": megabytes / 10}
        modes = {"single": {"accuracy": 50.0}}
        run.results = {"method": "dt", "default": "single", "modes": modes, "training": cost}
    (row,) = summary(runs).values()
    assert (row["peak_memory_mb"], row["seconds"]) == (300.0, 20.0)


def test_only_a_chain_has_an_accuracy_of_one_chain(tmp_path):
    runs = _planned(["digits-dt", "digits-dfa"], [0], tmp_path, {}, {})
    for run in runs:
        modes = {"single": {"accuracy": 50.0}}
        run.results = {"method": run.config.method.name, "modes": modes, "default": "single"}
    dt, dfa = summary(runs).values()
    assert (dt["accuracy"], dt["single"]) == (50, 50)
    assert (dfa["accuracy"], dfa["single"]) == (50, None)


def test_answers_are_paired_by_the_index_of_each_example(tmp_path):
    """In whatever order a file has them, and of the test part alone."""
    (tmp_path / "model.json").write_text(json.dumps({"class_names": ["a", "b"]}))
    (run,) = _planned(["digits-dt"], [0], tmp_path, {}, {})
    run.folder = tmp_path
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found = dataclasses.replace(
        predictions_of(p, torch.tensor([0, 0, 1])), index=torch.tensor([7, 2, 5])
    )
    save_predictions(tmp_path, found, "test")
    answers = _answers(run)
    assert answers is not None
    assert answers.index.tolist() == [2, 5, 7]
    assert answers.y.tolist() == [0, 1, 0]
    assert answers.right.tolist() == [0, 0, 1]
    save_predictions(tmp_path, found, "validation")
    assert _answers(run) is None


def test_the_command_takes_lists(capsys, tmp_path):
    argv = ["grid", "--method", "dt,ct", "--num-blocks", "1", "--steps", "3", "--seeds", "0"]
    argv += ["--encoder", "mlp", "--train-size", "60", "--epochs", "1", "--workers", "1"]
    assert main([*argv, "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert list(told["recipes"]) == ["digits-dt-method-dt", "digits-dt-method-ct"]
    assert [run.get("not_applied") for run in told["runs"]] == [
        ["method.steps"],
        ["method.num_blocks"],
    ]
    assert "digits-dt-method-ct: method.num_blocks not applied; ct has no such field" in err
    assert main([*argv, "--methods", "dt,ct", "--lr", "1e-3,x", "--out", str(tmp_path)]) == 1
    assert "train.lr: " in capsys.readouterr().err
