"""Units as tasks of Ray: the weights are those of one process, whatever is killed on the way."""

import dataclasses
import time

import pytest
import torch

import noprop
from noprop.config import replace
from noprop.errors import ConfigError, TrainingError
from noprop.run import ray_engine
from noprop.run.folder import create_run
from noprop.run.ray_engine import RayEngine, Tasks
from noprop.run.run import Run
from noprop.run.units import groups_of
from noprop.task import load_data
from noprop.training.events import Epoch, Event, Progress, Started
from ray_runs import CONFIG, LEARNED, LONG, SELDOM, Killer, assert_same, told, trained
from tools import commit_of


def by_unit(events: list[dict]) -> list[dict]:
    return sorted(events, key=lambda e: (e.get("unit", ""), e.get("units", [])))


@pytest.mark.parametrize(
    "changes",
    [{}, LEARNED, LEARNED | {"train.order": "parallel"}, LEARNED | {"train.offload": True}],
    ids=["one-hot", "learned", "learned-parallel", "learned-offload"],
)
def test_weights_and_events_are_those_of_one_process(cluster, whole, tmp_path, changes):
    """Bit for bit, optimizer state included; every event but mere progress."""
    config = replace(CONFIG, {**changes, **SELDOM})
    folder = trained(tmp_path / "r", config, RayEngine())
    assert_same(whole(config), folder, config)
    for kind in ("epoch", "trained"):
        assert by_unit(told(folder, kind)) == by_unit(told(whole(config), kind))
    assert not told(folder, "restarted")
    assert told(folder, "started")[0]["workers"] == min(2, len(groups_of(config)))


@pytest.mark.real_data
@pytest.mark.parametrize("changes", [{}, LEARNED], ids=["one-hot", "learned"])
def test_weights_on_mnist_are_those_of_one_process(cluster, real_data, tmp_path, changes):
    config = replace(
        noprop.RECIPES["mnist-dt"],
        {
            "method.num_blocks": 2,
            "data.train_size": 256,
            "train.epochs": 1,
            "train.workers": 1,
            "train.threads": 1,
            "train.device": "cpu",
            "train.precision": "float32",
            **changes,
        },
    )
    data = load_data(config, real_data("mnist"))
    for name, engine in {"local": None, "ray": RayEngine()}.items():
        create_run(tmp_path / name, config)
        Run(tmp_path / name, config, data).train(engine=engine)
    assert_same(tmp_path / "local", tmp_path / "ray", config)


# -- kills ---------------------------------------------------------------------------------------


def test_kill_minus_9_in_the_middle_of_checkpoints(cluster, whole, tmp_path):
    """Of one unit: it alone goes on, from its last checkpoint, to the same weights."""
    folder, positions = tmp_path / "r", []

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.unit == "block-1":
            positions.append(event.position)

    unit = folder / "units" / "block-1"
    killer = Killer(unit, ".*.tmp", 1, "commit.json")
    trained(folder, CONFIG, RayEngine(), emit=emit)
    killer.over = True
    assert len(killer.left) == 1
    restarted = told(folder, "restarted")
    assert {e["group"] for e in restarted} == {"block-1"}
    assert [e["attempt"] for e in restarted] == [2]
    assert positions.count(1) == 1  # it began once
    assert_same(whole(CONFIG), folder, CONFIG)
    assert not list(folder.rglob(".*.tmp"))


def test_too_many_losses_are_one_line(cluster, tmp_path):
    """Killed whenever it saves; the other unit is stopped with a checkpoint."""
    folder = tmp_path / "r"
    killer = Killer(folder / "units" / "block-1", ".*.tmp", 100)
    with pytest.raises(TrainingError) as error:
        trained(folder, LONG, RayEngine(retries=1), units=["block-1", "block-2"])
    killer.over = True
    assert str(error.value).startswith("block-1: its worker was lost 2 times (killed")
    assert str(error.value).endswith(f"resume with: noprop train --resume {folder}")
    assert "\n" not in str(error.value)


def test_no_event_is_lost_with_the_queue_of_events(cluster, whole, tmp_path, monkeypatch):
    """The queue is killed at the first event; metrics.jsonl still has every epoch and unit."""
    import ray

    made = []

    class Seen(Tasks):
        def __init__(self, retries: int):
            super().__init__(retries)
            made.append(self)

    def emit(event: Event) -> None:
        if isinstance(event, Progress):
            ray.kill(made[0].mail.actor)

    monkeypatch.setattr(ray_engine, "Tasks", Seen)
    folder = trained(tmp_path / "r", CONFIG, RayEngine(), emit=emit)
    for kind in ("epoch", "trained"):
        assert by_unit(told(folder, kind)) == by_unit(told(whole(CONFIG), kind))


def test_a_machine_that_joins_late_is_used_at_once(cluster, whole, tmp_path):
    """Units take three CPUs: the first machine has two, so they wait."""
    folder, machines, heard = tmp_path / "r", [], []

    def emit(event: Event) -> None:
        heard.append((event.to_json()["event"], time.monotonic()))
        if isinstance(event, Started):
            assert event.workers == 0
            machines.append(cluster.add_node(num_cpus=3))
            heard.append(("joined", time.monotonic()))

    try:
        trained(folder, CONFIG, RayEngine(cpus=3), emit=emit, units=["block-1"])
    finally:
        cluster.remove_node(machines[0])
    first = dict(reversed(heard))
    assert first["progress"] - first["joined"] < 30  # a worker must start there, and import torch
    assert_same(whole(CONFIG), folder, CONFIG, ["block-1"])


def test_a_lost_machine_is_replaced(cluster, whole, tmp_path):
    """It is killed with its processes while it trains, and another machine resumes the unit."""
    folder, machines = tmp_path / "r", [cluster.add_node(num_cpus=3)]

    def emit(event: Event) -> None:
        if isinstance(event, Epoch) and len(machines) == 1:
            cluster.remove_node(machines[0], allow_graceful=False)
            machines.append(cluster.add_node(num_cpus=3))

    trained(folder, LONG, RayEngine(cpus=3), emit=emit, units=["block-1"])
    cluster.remove_node(machines[1])
    assert [e["group"] for e in told(folder, "restarted")] == ["block-1"]
    assert_same(whole(LONG), folder, LONG, ["block-1"])


# -- ends before the end -------------------------------------------------------------------------


class Stopped(BaseException):
    """As abrupt as a signal."""


def test_a_driver_that_is_stopped_leaves_checkpoints(cluster, tmp_path):
    """No clock has saved any before, and training resumes from them without Ray."""
    config = replace(CONFIG, {**SELDOM, "train.epochs": 30})
    folder = tmp_path / "r"

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            raise Stopped

    with pytest.raises(Stopped):
        trained(folder, config, RayEngine(), emit=stop, units=["block-1"])
    commit = commit_of(folder, "block-1")
    assert 1 <= commit.position < commit.total
    trained(folder, config, units=["block-1"])
    trained(tmp_path / "whole", config, units=["block-1"])
    assert_same(tmp_path / "whole", folder, config, ["block-1"])


def test_the_error_of_a_unit_is_one_line_and_not_tried_again(cluster, tmp_path):
    config = replace(CONFIG, {"train.lr": 1e30})
    with pytest.raises(TrainingError, match=r"^\S+: the (loss is|weights are) not finite by") as e:
        trained(tmp_path / "r", config, RayEngine())
    assert "\n" not in str(e.value)
    assert not told(tmp_path / "r", "restarted")
    assert not told(tmp_path / "r", "trained")


def test_a_unit_that_another_process_trains_is_left_to_it(cluster, tmp_path):
    from noprop.errors import RunError
    from noprop.run.locks import hold
    from noprop.run.units import group_lock

    with hold(group_lock(tmp_path / "r", "block-1"), ""):
        create_run(tmp_path / "s", CONFIG)
        (tmp_path / "s").joinpath("config.toml").rename(tmp_path / "r" / "config.toml")
        with pytest.raises(RunError, match="another process is training block-1"):
            trained(tmp_path / "r", CONFIG, RayEngine())
    assert [e["units"] for e in by_unit(told(tmp_path / "r", "trained"))] == [
        ["block-2"],
        ["readout"],
    ]


def test_a_folder_that_workers_do_not_see_is_said(cluster, tmp_path, monkeypatch):
    """As on machines without a common file system."""
    from noprop.errors import RunError

    (tmp_path / "elsewhere").mkdir()
    real = Tasks._submit

    def submit(self, job, *others):
        return real(self, dataclasses.replace(job, folder=tmp_path / "elsewhere"), *others)

    monkeypatch.setattr(Tasks, "_submit", submit)
    with pytest.raises(RunError, match=r"elsewhere is not to be seen on .*--storage URL"):
        trained(tmp_path / "r", CONFIG, RayEngine())


def make_encoder() -> torch.nn.Module:
    """An encoder of this file, which no worker can import."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12))


def test_an_encoder_of_ones_own_goes_along(cluster, tmp_path):
    config = replace(CONFIG, {"method.encoder": "custom", **SELDOM})
    for name, engine in {"local": None, "ray": RayEngine()}.items():
        trained(tmp_path / name, config, engine, encoder=make_encoder)
    assert_same(tmp_path / "local", tmp_path / "ray", config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus": -1}, r"cpus: wanted a number of at least 0, got -1"),
        ({"gpus": 1.5}, r"gpus: above 1 Ray gives whole ones alone, got 1\.5"),
        ({"cpus": 0}, r"cpus: a unit must take something of a machine"),
        ({"retries": -1}, r"retries: wanted a number of at least 0, got -1"),
        ({"storage": "memory://x"}, r"storage: memory://x is in the memory of one process"),
        ({"storage": "runs"}, r"storage: wanted a URL such as .* got 'runs'"),
        ({"storage": "nowhere://x"}, r"storage: nowhere://x: Protocol not known: nowhere"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        RayEngine(**options)


def test_a_unit_takes_as_many_cpus_as_it_will_have_threads():
    """Before the run is settled too: a Ray of this machine is started with room for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        cpus = [RayEngine().cpus_of(replace(CONFIG, {"train.threads": 0, **changes}))
                for changes in ({}, {"method.name": "ct", "method.encoder": "auto"})]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert cpus == [1, 3]
