"""Units as tasks of Slurm, by submitit's executor of this machine: same weights, whatever ends."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from noprop.cli import main
from noprop.config import RunConfig, replace, to_toml
from noprop.errors import ConfigError, TrainingError
from noprop.run import slurm_engine
from noprop.run.folder import SLURM_PLACE, create_run
from noprop.run.locks import hold
from noprop.run.run import Run
from noprop.run.slurm_engine import SlurmEngine, minutes_of
from noprop.run.units import group_lock
from noprop.task import load_data
from noprop.training.events import Epoch, Event, Started, Trained
from ray_runs import CONFIG, LEARNED, LONG, SELDOM, assert_same, told

submitit = pytest.importorskip(
    "submitit", reason="submitit is not installed: pip install 'noprop[slurm]'"
)


def opened(folder: Path, config: RunConfig, **others: Any) -> Run:
    create_run(folder, config)
    return Run(folder, config, load_data(config), **others)


@pytest.fixture
def quick(monkeypatch):
    """Look at the tasks more often than is good for a cluster."""
    monkeypatch.setattr(slurm_engine, "LOOK", 0.1)


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """The tasks that were submitted; those of this machine have ended after the test."""
    submit, tasks = SlurmEngine._submit, list[Any]()

    def submit_and_note(*arguments: Any) -> list[Any]:
        tasks.extend(new := submit(*arguments))
        return new

    monkeypatch.setattr(SlurmEngine, "_submit", submit_and_note)
    yield tasks
    for task in tasks:
        if isinstance(task, submitit.LocalJob):
            task._process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, LEARNED], ids=["one-hot", "learned"])
def test_weights_and_events_are_those_of_one_process(quick, whole, tmp_path, changes):
    """Each event is passed on once, and stands in metrics.jsonl once."""
    config = replace(CONFIG, {**changes, **SELDOM})
    run, events = opened(tmp_path / "r", config), list[Event]()
    run.train(engine=SlurmEngine(cluster="local"), emit=events.append)
    assert_same(whole(config), run.folder, config)
    for kind in (Started, Epoch, Trained):
        mine = [event.to_json() for event in events if isinstance(event, kind)]
        assert len(mine) == len(told(run.folder, kind.__name__.lower())) > 0
    assert not list((run.folder / SLURM_PLACE).iterdir())
    run.assemble()
    assert not (run.folder / SLURM_PLACE).exists()


def make_encoder() -> torch.nn.Module:
    """An encoder of this file, which no task can import."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12))


@pytest.mark.slow
def test_an_encoder_of_ones_own_goes_along(quick, tmp_path):
    config = replace(CONFIG, {"method.encoder": "custom", **SELDOM})
    for name, engine in {"local": None, "slurm": SlurmEngine(cluster="local")}.items():
        opened(tmp_path / name, config, encoder=make_encoder).train(["block-1"], engine=engine)
    assert_same(tmp_path / "local", tmp_path / "slurm", config, ["block-1"])


@pytest.mark.slow
def test_a_task_whose_time_is_up_is_started_again(quick, tasks, whole, tmp_path):
    """submitit's signal leaves a checkpoint, saved by no clock; the task resumes from there."""
    config = replace(LONG, {**SELDOM, "train.epochs": 20})
    run = opened(tmp_path / "r", config)

    def interrupt(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 3:
            (task,) = [p for p in children(tasks[0]) if "_submit" in " ".join(p.cmdline())]
            task.send_signal(signal.SIGUSR2)

    run.train(["block-1"], engine=SlurmEngine(cluster="local"), emit=interrupt)
    epochs = [event["epoch"] for event in told(run.folder, "epoch")]
    assert epochs == list(range(1, 21))  # none was trained twice, and none left out
    opened(tmp_path / "whole", config).train(["block-1"])
    assert_same(tmp_path / "whole", run.folder, config, ["block-1"])


def children(task: Any) -> list[Any]:
    import psutil

    return psutil.Process(int(task.job_id)).children(recursive=True)


@pytest.mark.slow
def test_sigterm_saves_and_the_task_goes_on(quick, tasks, tmp_path):
    """Slurm sends it when it takes the machine, some time before it kills the task."""
    config = replace(LONG, {**SELDOM, "train.epochs": 20})
    run, positions = opened(tmp_path / "r", config), list[int]()

    def terminate(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 3:
            (task,) = [p for p in children(tasks[0]) if "_submit" in " ".join(p.cmdline())]
            task.send_signal(signal.SIGTERM)
        positions.extend(s.position for s in run.states() if s.name == "block-1")

    run.train(["block-1"], engine=SlurmEngine(cluster="local"), emit=terminate)
    assert any(0 < position < max(positions) for position in positions)
    assert [event["epoch"] for event in told(run.folder, "epoch")] == list(range(1, 21))


@pytest.mark.slow
def test_the_error_of_a_unit_is_one_line(quick, tmp_path):
    run = opened(tmp_path / "r", replace(CONFIG, {"train.lr": 1e30}))
    with pytest.raises(TrainingError, match=r"^\S+: the (loss is|weights are) not finite by") as e:
        run.train(["block-1", "block-2"], engine=SlurmEngine(cluster="local"))
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_killed_task_is_reported_with_its_log(quick, tasks, tmp_path):
    run = opened(tmp_path / "r", LONG)

    def kill(event: Event) -> None:
        if isinstance(event, Epoch):
            for process in children(tasks[0]):
                process.kill()

    words = r"^block-1: its task \d+ ended .*_log\.err; .*--resume"
    with pytest.raises(TrainingError, match=words):
        run.train(["block-1"], engine=SlurmEngine(cluster="local"), emit=kill)


@pytest.mark.slow
def test_a_unit_that_another_process_holds_is_waited_for(quick, tmp_path):
    """As by an array that was submitted before: when it lets go, there is another task."""
    run, engine = opened(tmp_path / "r", replace(CONFIG, SELDOM)), SlurmEngine(cluster="local")
    with hold(group_lock(run.folder, "block-1"), ""):
        other = threading.Thread(target=run.train, args=(["block-1"],), kwargs={"engine": engine})
        other.start()
        while not list(run.folder.glob(f"{SLURM_PLACE}/*/*_result.pkl")):
            time.sleep(0.1)
        time.sleep(1)
        assert other.is_alive()
        assert len(engine.submitted) == 1
    other.join()
    assert len(engine.submitted) == 2
    assert len(told(run.folder, "trained")) == 1


@pytest.mark.slow
def test_no_wait_leaves_when_the_tasks_are_submitted(tmp_path):
    config = replace(CONFIG, {"method.num_blocks": 1, **SELDOM})
    run, engine = opened(tmp_path / "r", config), SlurmEngine(cluster="local", no_wait=True)
    run.train(engine=engine)
    assert len(engine.submitted) == 2
    deadline = time.monotonic() + 120
    while not all(state.finished for state in run.states()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run.assemble()
    assert not (run.folder / SLURM_PLACE).exists()


def test_what_is_asked_of_slurm_is_what_was_given(monkeypatch, tmp_path):
    """The file for sbatch, of a command that stands for it."""
    text = tmp_path / "text"
    for name, script in {
        "sbatch": f'cat "$1" > {text}; echo "Submitted batch job 123"',
        "srun": "exit 1",
        "sacct": "exit 1",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file, folder = tmp_path / "c.toml", tmp_path / "r"
    file.write_text(to_toml(CONFIG))
    argv = ["train", "--config", str(file), "--run", str(folder), "--engine", "slurm", "--no-wait"]
    argv += ["--partition", "long", "--time", "1-2:30", "--mem", "8G", "--gpus-per-task", "1"]
    assert main([*argv, "--sbatch", "account=me", "--quiet"]) == 0
    lines = text.read_text().splitlines()
    for wanted in ("partition=long", "time=1590", "mem=8G", "gpus-per-task=1", "cpus-per-task=1",
                   "account=me", "requeue", "array=0-2%3", "job-name=noprop-r"):  # fmt: skip
        assert f"#SBATCH --{wanted}" in lines


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), (7, 7), ("1:30", 2), ("1:30:00", 90), ("1-12", 2160), ("1-0:30", 1470)],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "0:00", "1h", "1-", "-5", "1:2:3:4", "next week"])
def test_a_wrong_time_is_named(text):
    with pytest.raises(ConfigError, match="time: wanted a time such as 90, 1:30:00 or 1-12"):
        minutes_of(text)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--partition", "long"], "--partition: is for --engine slurm"),
        (["--no-wait"], "--no-wait: name the run folder"),
        (["--run", "r", "--no-wait"], "--no-wait: is for --engine slurm"),
        (["--engine", "ray", "--mem", "8G"], "--mem: is for --engine slurm"),
        (["--engine", "slurm", "--retries", "3"], "--retries: is for --engine ray"),
        (["--engine", "slurm", "--workers", "3"], "--workers: each unit is a task of Slurm"),
        (["--engine", "slurm", "--sbatch", "account"], "--sbatch: wanted NAME=VALUE"),
        (["--engine", "slurm", "--time", "soon"], "time: wanted a time such as"),
        (["--engine", "slurm"], "engine: there is no Slurm here (no command sbatch)"),
    ],
)
def test_mistakes_are_one_line_and_no_folder(capsys, monkeypatch, tmp_path, argv, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", *argv]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"noprop: error: {words}")
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_submitit_the_error_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["train", "--run", str(tmp_path / "r"), "--engine", "slurm"]) == 1
    text = capsys.readouterr().err
    assert text == "noprop: error: engine slurm needs submitit: pip install 'noprop[slurm]'\n"


def test_a_grid_waits(capsys, tmp_path):
    argv = ["grid", "digits-dt", "--engine", "slurm", "--no-wait", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(argv)
    assert "unknown option --no-wait" in capsys.readouterr().err
