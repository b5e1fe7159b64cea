"""Runs under torchrun, on loopback: workers, agents and machines that are killed for real.

Each ends with the weights of one undisturbed process, bit for bit.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

import noprop
from noprop import api
from noprop.config import RunConfig, replace, to_toml
from noprop.errors import RunError
from noprop.run import torchrun
from noprop.run.metrics import read_metrics
from noprop.run.rendezvous import Rendezvous
from noprop.training.events import Epoch, Event, Found
from tools import alter, files_of, weights

CONFIGS = {
    "one-hot": {},
    "d20": {
        "method.embedding": "orthogonal",
        "method.learned": True,
        "method.dim": 20,
        "train.order": "parallel",
    },
}
SMALL: dict[str, Any] = {
    "method.num_blocks": 3,
    "method.encoder": "mlp",
    "data.train_size": 400,
    "train.batch_size": 8,
    "train.epochs": 5,
    "train.workers": 1,
    "train.device": "cpu",
    "train.precision": "float32",
    "train.checkpoint_every": 0.2,
    "evaluation.runs": 1,
}
both = pytest.mark.parametrize("kind", list(CONFIGS))


def configured(kind: str, **changes) -> RunConfig:
    return replace(RunConfig(), {**SMALL, **CONFIGS[kind], **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """The runs of one undisturbed process."""
    place, made = tmp_path_factory.mktemp("whole"), {}

    def find(kind: str) -> Path:
        if kind not in made:
            config = configured(kind, **{"train.checkpoint_every": 1e9})
            noprop.train_units(place / kind, config.method.unit_names, config)
            made[kind] = place / kind
        return made[kind]

    return find


def assert_same(a: Path, b: Path) -> None:
    """Weights, statistics and optimizer state."""
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    assert x
    assert not [name for name in x if not torch.equal(x[name], y[name])]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("localhost", port)) == 0


class Agent:
    """One torchrun, with the workers that it starts."""

    def __init__(self, folder: Path, config: RunConfig, *argv: str, options: tuple[str, ...]):
        file = folder.with_suffix(".toml")
        file.write_text(to_toml(config))
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "noprop"]
        command += ["train", "--config", str(file), *argv]
        environment = {
            **os.environ,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.log = folder.with_suffix(f".{random.random()}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def end(self) -> int:
        try:
            return self.process.wait(150)
        finally:
            self.kill()

    def kill(self) -> None:
        for process in (*self._children(), self.process):
            process.kill()
        self.process.wait()

    def _children(self) -> list[psutil.Process]:
        return self.workers() if psutil.pid_exists(self.process.pid) else []

    def text(self) -> str:
        return self.log.read_text()


def alone(processes: int, restarts: int = 2) -> tuple[str, ...]:
    return ("--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}",
            "--monitor-interval=0.1")  # fmt: skip


def machine(port: int) -> tuple[str, ...]:
    """One of up to two machines, of one process each; a dead one is missed within 3 seconds."""
    return (
        "--nnodes=1:2",
        "--nproc-per-node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}",
        "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3",
        "--monitor-interval=0.1",
    )


def wait_until(condition: Callable[[], object], agent: Agent) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert agent.process.poll() is None, agent.text()
        assert time.monotonic() < deadline, agent.text()
        time.sleep(0.005)


def wait_until_saved(folder: Path, agent: Agent) -> None:
    """Until there is a checkpoint of the middle of something."""
    wait_until(lambda: list(folder.glob("units/*/commit.json")), agent)


def trainings(folder: Path) -> dict[str, int]:
    """How often each unit was trained to its end."""
    events = [e for e in read_metrics(folder) if e["event"] == "trained"]
    return dict(Counter(unit for e in events for unit in e["units"]))


@pytest.mark.slow
@both
def test_a_worker_killed_at_a_random_update(whole, tmp_path, kind):
    """torchrun starts all again; what was finished is not trained again."""
    folder = tmp_path / "r"
    agent = Agent(folder, configured(kind), "--run-dir", str(folder), options=alone(2))
    wait_until_saved(folder, agent)
    time.sleep(random.Random(kind).uniform(0, 0.3))
    random.Random(kind).choice(agent.workers()).kill()
    assert agent.end() == 0, agent.text()
    assert_same(whole(kind), folder)
    assert trainings(folder) == dict.fromkeys(configured(kind).method.unit_names, 1)
    assert (folder / "model.safetensors").exists()
    assert re.search(r"test examples, (1 inference run|mean ± standard error of)", agent.text())


@pytest.mark.slow
@both
def test_a_machine_lost_for_good(whole, tmp_path, kind):
    """Its agent is killed, and its worker with it; the other machine ends the run alone."""
    folder, port = tmp_path / "r", free_port()
    config = configured(kind)
    first = Agent(folder, config, "--run-dir", str(folder), options=machine(port))
    wait_until(lambda: listens(port), first)  # it holds the rendezvous, not the other
    second = Agent(folder, config, "--run-dir", str(folder), options=machine(port))
    wait_until_saved(folder, first)
    workers = second.workers()
    second.process.kill()
    second.process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]  # one may still import torch
    wait_until(lambda: (folder / "model.json").exists(), first)
    first.kill()  # torchrun itself would wait five minutes for the other agent
    assert_same(whole(kind), folder)
    assert trainings(folder) == dict.fromkeys(config.method.unit_names, 1)
    starts = [e for e in read_metrics(folder) if e["event"] == "started"]
    assert len(starts) == (1 if kind == "one-hot" else 2)  # the one needs nobody


@pytest.mark.slow
@both
def test_sigterm_leaves_checkpoints(whole, tmp_path, kind):
    """As a scheduler sends it before it takes the machine: no clock has saved anything yet."""
    folder = tmp_path / "r"
    config = configured(kind, **{"train.checkpoint_every": 1e9})
    agent = Agent(folder, config, "--run-dir", str(folder), options=alone(2, restarts=0))
    wait_until(lambda: [e for e in read_metrics(folder) if e["event"] == "epoch"], agent)
    workers = agent.workers()
    agent.process.send_signal(signal.SIGTERM)
    agent.end()
    assert not psutil.wait_procs(workers, timeout=10)[1]
    states = noprop_states(folder)
    assert any(0 < state.position < (state.total or 0) for state in states)
    noprop.train_units(folder, config.method.unit_names, overrides={"train.workers": 1})
    assert_same(whole(kind), folder)


def noprop_states(folder: Path):
    from noprop.model import open_run
    from noprop.run.units import survey

    return survey(folder, open_run(folder))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "torchrun: name the folder of the run with --run-dir DIR or --resume RUN"),
        (("--run-dir", "r", "--workers", "2"), "--workers: torchrun sets the number"),
        (("--run-dir", "r", "--units", "block-1"), "--units: torchrun trains all units"),
    ],
)
def test_what_torchrun_decides_cannot_be_asked_for(capsys, monkeypatch, tmp_path, argv, words):
    """In one line, before anything is made."""
    from noprop.cli import main

    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    assert main(["train", *argv]) == 1
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_machine_does_not_see_is_said_at_once(monkeypatch, tmp_path):
    """By its rank 1, before anything is trained."""
    store = HashStore()
    store.set("folder", "true")
    monkeypatch.setattr(torchrun, "joined", lambda: Rendezvous(1, 2, 0, store))
    monkeypatch.setattr(torchrun, "_appears", lambda path: path.is_file())
    with pytest.raises(RunError, match=r"^rank 1: .*elsewhere is not to be seen on "):
        api.train_together(configured("one-hot"), folder=tmp_path / "elsewhere")


def test_rank_0_is_waited_for_as_long_as_it_lives():
    """Far longer than the store waits for a key: it may evaluate for an hour."""
    store = HashStore()
    store.set_timeout(timedelta(milliseconds=50))

    def decide_late() -> None:
        time.sleep(1)
        Rendezvous(0, 2, 0, store).decide("plan", lambda: {"data": 3})

    late = threading.Thread(target=decide_late)
    late.start()
    assert Rendezvous(1, 2, 0, store).decide("plan", pytest.fail) == {"data": 3}
    late.join()


def test_rank_0_shows_the_events_of_all_in_their_order():
    store, seen = HashStore(), []
    tell = Rendezvous(1, 2, 0, store).teller(lambda event: pytest.fail(str(event)))
    for n in range(3):
        tell(Found(f"block-{n}"))
    first = Rendezvous(0, 2, 0, store)
    first.teller(seen.append)(Found("readout"))
    first.listen(seen.append, now=True)
    assert seen == [Found(group) for group in ("readout", "block-0", "block-1", "block-2")]
    assert not store.check(["event/1/0"])


class Stopped(BaseException):
    """As abrupt as a signal."""


@pytest.mark.slow
def test_a_finished_unit_whose_checkpoint_is_damaged_is_mended(whole, tmp_path):
    """Its header still says that it is trained; it goes on from the checkpoint before."""
    folder, early = tmp_path / "r", tmp_path / "early"
    config = configured("one-hot", **{"train.checkpoint_every": 1e9})
    place = folder / "units/block-2"

    def stop(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 2:
            raise Stopped

    with contextlib.suppress(Stopped):
        noprop.train_units(folder, ["block-2"], config, emit=stop)
    shutil.copytree(place, early)
    noprop.train_units(folder, config.method.unit_names, config)
    for path in early.glob("*.safetensors"):
        shutil.copy(path, place)
    shutil.copy(early / "commit.json", place / "previous.json")
    alter(files_of(folder, "block-2")["block-2"])
    agent = Agent(folder, config, "--run-dir", str(folder), options=alone(2, restarts=0))
    assert agent.end() == 0, agent.text()
    assert "resuming from the one before it" in agent.text()
    assert_same(whole("one-hot"), folder)
