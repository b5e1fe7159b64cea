"""``noprop bench`` as a user meets it: tables, JSON and figures, and errors before any work."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noprop import config
from noprop.bench import SUITES, accuracy
from noprop.bench.memory import BLOCKS
from noprop.bench.scaling import worker_counts
from noprop.bench.settings import SHAPES, TARGETS, Settings
from noprop.bench.suites import Suite, bench_text, draw_bench, run_suites, step_count
from noprop.cli import main
from noprop.config import RunConfig
from noprop.errors import ConfigError
from noprop.paper.numbers import TABLE1
from tools import TWO_BLOCKS

QUICK = Settings(methods=("dt", "ct"), blocks=2, steps=3, images=20, rounds=1, seconds=0.01)


def noprop(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "noprop", "bench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainin"], "SUITE: 'trainin' is none of training, prediction"),
        (["--dataset", "digits"], "--dataset: 'digits' is none of mnist"),
        (["--methods", "dt,sgd"], "--methods: 'sgd' is none of dt, ct"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--workers", "-2"], "--workers must be at least 1, got -2"),
        (["--seconds", "inf"], "--seconds must lie in 0..3600, got inf"),
        (["--methods", "dt,,ct"], "--methods: an empty name is none of dt"),
        (["--methods", "dt,dt"], "--methods: dt is given twice"),
        (["--methods", "fast"], "--methods: fast is for the suite accuracy alone"),
        (["--target", "101"], "--target must lie in 0..100, got 101"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(arguments, words, capsys, tmp_path):
    assert main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("noprop: error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_and_prediction_against_the_plain_loop(tmp_path):
    """One short round; the figures of it mean nothing, their arithmetic does."""
    steps, kept = [], []
    suites = ("training", "prediction", "scaling")
    results = run_suites(QUICK, suites, steps.append, lambda found: kept.append(list(found)))
    assert len(steps) == step_count(QUICK, suites)
    assert len(kept) == len(steps) + len(suites)  # after each step, and each suite
    names = ["machine", "settings", "rates", "training", "prediction", "chains", "reads"]
    exported = ["exported"] if find_spec("onnxscript") and find_spec("onnxruntime") else []
    assert kept[-1] == [*names, *exported, "scaling"]
    for row in results.get("exported", {}).values():
        speed = row["images_per_second"]
        for name, ratio in row["onnxruntime_over_ours"].items():
            wanted = speed["onnxruntime"]["median"] / speed[name]["median"]
            assert ratio["median"] == pytest.approx(wanted)
    for row in (*results["training"].values(), *results["prediction"].values()):
        speed, ratio = row["images_per_second"], row["ours_over_plain"]["median"]
        assert ratio == pytest.approx(speed["ours"]["median"] / speed["plain"]["median"])
        assert 0 < row["share_of_bound"]
    dt = results["training"]["dt"]
    assert dt["seconds"] == pytest.approx(128 / dt["images_per_second"]["ours"]["median"])
    assert dt["share_of_bound"] * dt["seconds"] == pytest.approx(dt["bound_seconds"])
    text = bench_text(json.loads(json.dumps(results)))
    for words in (
        "times as fast",
        "dt, 10 chains with noise cost",
        "read x alone",
        "dt over workers",
        *["dt, the exported graph in ONNX Runtime"] * len(exported),
    ):
        assert words in text
    names = {path.name for path in draw_bench(results, tmp_path)}
    assert names == {"training-speed.png", "prediction-speed.png", "roofline.png", "scaling.png"}


@pytest.mark.slow
def test_the_command_leaves_tables_json_and_figures(tmp_path):
    made = noprop("scaling", "--quick", "--blocks", "2", "--workers", "2", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "dt over workers" in made.stdout
    assert "the machine's rates" in made.stderr  # the first step; others, once in five seconds
    results = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert set(results["scaling"]["workers"]) == {"1", "2"}
    assert (tmp_path / "bench" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_workers_are_counted_in_powers_of_two_up_to_the_most():
    """Eleven units of ten blocks keep eleven workers busy, and no more."""
    counted = {n: worker_counts(Settings(workers=n)) for n in (1, 2, 6, 8, 40)}
    powers = {1: [1], 2: [1, 2], 6: [1, 2, 4, 6], 8: [1, 2, 4, 8], 40: [1, 2, 4, 8, 11]}
    assert counted == powers


def test_a_folder_with_results_is_not_written_over(tmp_path, capsys):
    (tmp_path / "bench.json").write_text("{}")
    assert main(["bench", "scaling", "--out", str(tmp_path)]) == 1
    assert "already has a bench.json" in capsys.readouterr().err
    assert main(["bench", "scaling", "--out", "/proc/nowhere"]) == 1
    assert "--out: /proc/nowhere cannot be made" in capsys.readouterr().err


def test_without_torchdiffeq_adjoint_is_left_out_or_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = ["--out", str(tmp_path / "out"), "--rounds", "0"]
    assert main(["bench", "scaling", "--methods", "adjoint", *out]) == 1
    assert "pip install 'noprop[ode]'" in capsys.readouterr().err
    assert main(["bench", "scaling", *out]) == 1  # of the rounds, after the note
    assert "without adjoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_however_it_is_stopped_its_processes_end(stop, status, tmp_path):
    """Ctrl-C is one line, even while they import; a killed parent's children see it is gone."""
    command = [sys.executable, "-m", "noprop", "bench", "scaling", "--seconds", "30"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        while "rates" not in process.stderr.readline():
            pass
        time.sleep(1)
        (os.killpg if stop == signal.SIGINT else os.kill)(process.pid, stop)
        rest = process.stderr.read()  # ends when the last process that has it does
        assert process.wait(20) == status, rest
    assert "Traceback" not in rest


def test_every_data_set_has_recipes_of_every_method():
    for dataset in SHAPES:
        settings = Settings(dataset=dataset)
        for method in settings.methods:
            assert settings.config(method).method.name == method


def test_no_suite_is_left_out_of_the_count():
    assert all(step_count(QUICK, (suite,)) > 1 for suite in SUITES)
    with pytest.raises(ConfigError, match="SUITE"):
        step_count(QUICK, ("speed",))


def test_a_suite_is_one_file_and_its_name(monkeypatch, tmp_path):
    """Its steps, check, measurement, table and figure are found through the name alone."""

    def check(settings):
        if settings.blocks > 2:
            raise ConfigError("too many")

    def measure(settings, results, progress):
        results["toy"] = {"rates": sorted(results["rates"])}
        progress("toy")

    toy = Suite(
        steps=lambda settings: 1,
        measure=measure,
        table=lambda results: f"a toy with {results['toy']}",
        figures={"toys": lambda figure, results: figure.suptitle(str(results["toy"]))},
        check=check,
    )
    monkeypatch.setitem(sys.modules, "noprop.bench.toy", SimpleNamespace(SUITE=toy))
    monkeypatch.setitem(SUITES, "toy", "help")
    rates = {"float32": 2e11, "copy": 5e10}
    monkeypatch.setattr("noprop.bench.suites.measure_rates", lambda workers: rates)
    assert step_count(QUICK, ["toy"]) == 2
    results = run_suites(QUICK, ["toy"], lambda text: None)
    assert "a toy with {'rates': ['copy', 'float32']}" in bench_text(results)
    assert [path.name for path in draw_bench(results, tmp_path)] == ["toys.png"]
    monkeypatch.setattr("noprop.bench.suites.measure_rates", lambda workers: pytest.fail("late"))
    with pytest.raises(ConfigError, match="too many"):
        run_suites(replace(QUICK, blocks=3), ["toy"], lambda text: None)


def test_memory_and_accuracy_are_told_and_drawn(tmp_path):
    row = {str(n): 100.0 + n for n in BLOCKS}
    run = {
        "epochs": 2, "seconds": 75.0, "validation_accuracy": 99.0, "test_accuracy": 98.9,
        "images_seen": 6000,
    }  # fmt: skip
    results = {
        "settings": {"workers": 2},
        "machine": {"processor": "none", "cores": 2, "torch": "2", "commit": "abc"},
        "rates": {"float32": 2e11, "copy": 5e10},
        "memory": {"above_imports_mb": {"dt": row, "backprop": row}},
        "accuracy": {
            "target": 99.0,
            "methods": {"dt": [run]},
            "paper": {"recipe": "mnist-dt", "epochs": 100, "epoch_seconds": 60.0},
        },
    }
    text = bench_text(results)
    assert "mnist-dt: its 100 epochs would take 1 h 40 min, by the 1 min 0 s of one" in text
    assert "T = 40" in text
    assert "1 min 15 s" in text
    assert {p.name for p in draw_bench(results, tmp_path)} == {"memory.png", "accuracy.png"}


def test_the_target_is_the_paper_s_unless_given():
    numbers = TABLE1["dt", "one-hot"]
    for dataset, target in TARGETS.items():
        assert Settings(dataset=dataset).accuracy_target == target
        number = numbers[dataset][1]
        assert number is not None
        assert number.mean == target
    assert Settings(target=50.0).accuracy_target == 50
    with pytest.raises(ConfigError, match="--target: the paper has no accuracy on fashion-mnist"):
        accuracy.check(Settings(dataset="fashion-mnist", methods=()))


def test_the_default_prediction_decides_when_the_target_is_reached(monkeypatch):
    """One chain is shown, and has a star of its own; no run is longer than the recipe's."""
    asked: list[int] = []

    class Trained:
        def __init__(self, epochs: int):
            self.epochs = epochs

        def evaluate(self, data_dir: object, part: str = "test") -> dict[str, Any]:
            modes = {"path": {"accuracy": 48.0 + self.epochs}, "single": {"accuracy": 30.0}}
            return {"default": "path", "modes": modes}

    def short(config: RunConfig, **options: Any) -> Trained:
        asked.append(config.train.epochs)
        return Trained(config.train.epochs)

    def find(name: str) -> RunConfig:
        return config.replace(RunConfig(), {**TWO_BLOCKS, "train.epochs": 7})

    monkeypatch.setattr(accuracy, "find_recipe", find)
    monkeypatch.setattr(accuracy, "train", short)
    monkeypatch.setattr(accuracy, "training_seconds", lambda run: 1.0)
    for target, epochs in ((50.0, [1, 2]), (51.5, [1, 2, 3, 5]), (90.0, [1, 2, 3, 5, 7])):
        asked.clear()
        results: dict[str, Any] = {}
        settings = replace(QUICK, methods=("dt",), target=target)
        accuracy.measure(settings, results, lambda text: None)
        assert asked == epochs
    last = {"epochs": 4, "seconds": 1.0, "images_seen": 1}
    last |= {"validation_accuracy": 52.0, "validation_accuracy_of_one_chain": 50.5}
    shown = {"target": 50.0, "methods": {"dt": [last]}}
    assert "52.00 * (50.50 *)" in accuracy.text({"accuracy": shown})
    shown["target"] = 51.0
    assert "52.00 * (50.50)" in accuracy.text({"accuracy": shown})


def test_the_fast_recipe_is_trained_until_it_is_accurate_enough(monkeypatch):
    """On digits: more epochs until the target, and the time of an epoch of the paper's recipe."""
    asked: list[str] = []

    def find(name: str) -> RunConfig:
        asked.append(name)
        return config.replace(RunConfig(), {**TWO_BLOCKS, "recipe": name, "train.epochs": 100})

    monkeypatch.setattr(accuracy, "find_recipe", find)
    monkeypatch.setattr(accuracy, "EPOCHS", (1, 30, 60))
    settings, results = replace(QUICK, methods=("fast",), target=50.0), {}
    accuracy.check(settings)
    accuracy.measure(settings, results, lambda text: None)
    rows = results["accuracy"]["methods"]["fast"]
    assert [row["epochs"] for row in rows] == [1, 30]
    assert rows[0]["validation_accuracy"] < 50 <= rows[1]["validation_accuracy"]
    assert "test_accuracy" not in rows[0]  # the test part is read once
    assert rows[1]["test_accuracy_of_one_chain"] <= 100
    paper = results["accuracy"]["paper"]
    assert (paper["recipe"], paper["epochs"]) == ("mnist-dt", 100)
    assert paper["epoch_seconds"] > 0
    assert set(asked) == {"mnist-fast", "mnist-dt"}
