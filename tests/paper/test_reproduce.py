"""Experiments from beginning to end, on a little of MNIST: each cell once, whatever stops it."""

import json
from pathlib import Path

import pytest

import noprop.paper.reproduce as reproduce_module
from noprop.cli import main
from noprop.paper.cells import Cell
from noprop.paper.estimate import Pace, seconds_of
from noprop.paper.measure import Job
from noprop.paper.queue import run_jobs
from noprop.paper.records import read_records
from noprop.paper.reproduce import Reproduction, plan, reproduce
from noprop.paper.scale import Scale, parse_scale
from noprop.training.events import Deadline, Grid, Progress, print_nothing

LITTLE = "smoke,images=256,test=64,steps=3"

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def wanted(place: Path, data: Path, *only: str, scale: str = LITTLE) -> Reproduction:
    return Reproduction(
        ["table1"],
        only,
        parse_scale(scale),
        runs=place / "runs",
        out=place / "results",
        data_dir=data,
    )


def test_each_cell_is_trained_once_and_a_failure_stops_no_other(tmp_path, real_data, capsys):
    w = wanted(tmp_path, real_data("mnist"), "mnist", "fm", "ct", "one-hot")
    obstacle = w.runs / w.scale.name / "mnist-fm-seed-0" / "notes.txt"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("mine")
    events = []
    paths, failed = reproduce(w, at_a_time=2, emit=events.append)
    assert failed.keys() == {"mnist-fm-seed-0"}
    assert "is no run folder" in str(failed["mnist-fm-seed-0"])
    (record,) = read_records(w.records)
    assert record["cell"] == "mnist-ct"
    assert record["extent"]["train"] == [256, 54_000]
    assert record["extent"]["test"] == [64, 10_000]
    assert record["extent"]["steps"] == [3, 1000]
    assert record["test"]["runs"] == 2
    assert record["config"]["train"]["seed"] == 0
    assert [p["epoch"] for p in record["curve"]] == [1]
    assert 0 < record["curve"][0]["seconds"] <= record["training"]["seconds"]
    assert "1 of 100 epochs, 256 of 54,000" in paths[0].read_text()

    obstacle.unlink()
    again = []
    _, failed = reproduce(w, at_a_time=2, emit=again.append)
    assert not failed
    assert list(next(e for e in again if isinstance(e, Grid)).runs) == ["mnist-fm-seed-0"]
    assert [r["cell"] for r in read_records(w.records)] == ["mnist-ct", "mnist-fm"]

    (p, q) = plan(w)
    assert (p.done, q.done, p.seconds, q.seconds) == ((0,), (0,), None, None)
    options = ["--scale", LITTLE, "--runs", str(w.runs), "--out", str(w.out), "--data-dir",
               str(w.data_dir)]  # fmt: skip
    assert main(["reproduce", "table1", "--only", "mnist,fm,ct,one-hot", "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["failed"] == {}
    assert {c["cell"]: c["seeds"] for c in said["cells"]} == {"mnist-ct": [0], "mnist-fm": [0]}
    assert said["cells"][0]["single"]["accuracy"] == record["test"]["modes"]["single"]["accuracy"]
    assert len(read_records(w.records)) == 2


def test_a_stopped_cell_goes_on_and_finds_what_it_would_have_found(tmp_path, real_data):
    data, scale = real_data("mnist"), "smoke,images=2560,test=64,steps=3"
    whole = wanted(tmp_path / "whole", data, "mnist-ct", scale=scale)
    reproduce(whole)
    stopped = wanted(tmp_path / "stopped", data, "mnist-ct", scale=scale)

    def stop(event):
        if isinstance(event, Progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(stopped, emit=stop)
    folder = stopped.runs / stopped.scale.name / "mnist-ct-seed-0"
    assert (folder / "units/network/commit.json").exists()
    assert read_records(stopped.records) == []
    assert not (folder / "evaluation.json").exists()
    reproduce(stopped)
    (a,), (b,) = read_records(whole.records), read_records(stopped.records)
    for part in ("test", "train", "config", "extent"):
        assert a[part] == b[part], part


def test_what_another_command_did_meanwhile_is_not_done_again(tmp_path):
    jobs = wanted(tmp_path, tmp_path, "mnist", "one-hot").jobs
    ended = run_jobs(jobs, at_a_time=2, emit=print_nothing, is_done=lambda job: True)
    assert list(ended) == [(job, None) for job in jobs]
    assert not list(tmp_path.iterdir())


def test_a_deadline_ends_it_and_says_what_is_left(tmp_path, real_data, monkeypatch):
    monkeypatch.setattr(reproduce_module, "RESERVE", 4.0)
    w = wanted(tmp_path, real_data("mnist"), "mnist-ct", scale="full")
    events = []
    _, failed = reproduce(w, deadline=48.0, emit=events.append)
    assert not failed
    assert events[-1] == Deadline(3)
    assert read_records(w.records) == []


def test_a_plan_times_steps_and_trains_nothing(tmp_path, real_data):
    w = wanted(tmp_path, real_data("mnist"), "mnist", "one-hot", "dt", "ct")
    full = wanted(tmp_path, real_data("mnist"), "mnist", "one-hot", "dt", "ct", scale="full")
    seconds = {}
    for planned in (w, full):
        for p in plan(planned):
            assert p.done == ()
            assert p.seconds is not None
            seconds[p.cell.method, planned.scale.name == "full"] = p.seconds
    assert not w.runs.exists()
    # 100 epochs of 54,000 images and one of 256: a hundred times more at least.
    assert seconds["dt", True] > 100 * seconds["dt", False]
    assert seconds["ct", True] > 100 * seconds["ct", False]


@pytest.mark.parametrize(
    ("method", "batches", "images", "steps"),
    [
        # Test images by 5 × 5 chains and one without noise, as many training images by 5 and one,
        # validation images by 5 for the path weights; validation losses after each epoch.
        ("dt", 100 * 421, 10_000 + 10_000 + 6_000 * 101, 10 * (260_000 + 60_000 + 30_000)),
        # And ten copies of the weights, each read by one chain with noise and one without.
        ("ct", 100 * 421, 110_000 + 10_000 + 6_000 * 101, 1000 * (460_000 + 60_000 + 30_000)),
    ],
)
def test_a_plan_counts_what_is_trained_and_scored(method, batches, images, steps):
    job = Job(Cell("mnist", method, "one-hot"), Scale(), 0, Path())
    assert seconds_of(job, Pace(1.0, 0.0, 0.0)) == batches
    assert seconds_of(job, Pace(0.0, 1.0, 0.0)) == images
    assert seconds_of(job, Pace(0.0, 0.0, 1.0)) == steps


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tabel1"], "reproduce: 'tabel1' is none of table1"),
        (["table1", "--only", "minst"], "--only: no cell matches 'minst'; did you mean mnist?"),
        (["table1", "--only", "adjoint,d20"], "--only: no cell matches all of adjoint, d20"),
        (["table1", "--scale", "tiny"], "--scale: wanted full, smoke"),
        (
            ["table1", "--deadline", "soon"],
            "--deadline: wanted a duration such as 90s, 25m or 1h30m",
        ),
        (["table1", "--deadline", "20s"], "--deadline must be 60 seconds at least, got 20"),
        (["table1", "--plan", "--jobs", "0"], "--jobs must be at least 1"),
        (["table1", "--only", ","], "--only: names no cell"),
        (["table5", "--only", "mnist"], "--only: table5 has no cells"),
        (["table1", "--out", "/proc/none"], "--out: /proc/none cannot be written"),
        (["table1", "--jobs", "0"], "--jobs must be at least 1"),
        (["table1", "--seeds", "a"], "--seeds: wanted seeds such as 0..4"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
