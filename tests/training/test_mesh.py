"""Teams of processes: the same bits for any number of them, and what they send each other."""

import json
import multiprocessing
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.utils._python_dispatch import TorchDispatchMode

import noprop
from noprop.build import build_embedding
from noprop.config import RunConfig, replace
from noprop.run.local import local_mesh
from noprop.run.locks import hold
from noprop.run.processes import METHOD, start_server
from noprop.run.rendezvous import joined
from noprop.run.units import COUPLED, group_lock, share_of_groups
from noprop.run.worker import Job, train_group
from noprop.task import RunData, load_data
from noprop.training import mesh
from noprop.training.events import Epoch, Event, Progress, Started, Trained
from noprop.training.layout import Layout, choose_layout
from noprop.training.mesh import ProcessMesh, Requests, connected_mesh
from tools import NOISE, NOISE_DATA, SMALL, assert_same, commit_of

ONE_HOT: dict[str, Any] = {}
D20 = {
    "method.embedding": "orthogonal",
    "method.learned": True,
    "method.dim": 20,
    "train.order": "parallel",
}
FEW = {
    **SMALL,
    "train.batch_size": 16,  # four mini-batches of the noise images
    "train.epochs": 2,
    "train.threads": 1,
}


def configured(**changes) -> RunConfig:
    blocks = {} if "method.name" in changes else {"method.num_blocks": 3}
    return replace(RunConfig(), {**FEW, **blocks, **changes})


def trained(folder: Path, data: RunData = NOISE_DATA, /, **changes) -> Path:
    events: list[Event] = []
    config = configured(**changes)
    noprop.train_units(folder, config.method.unit_names, config, data=data, emit=events.append)
    workers = [e.workers for e in events if isinstance(e, Started)]
    assert workers == [changes["train.workers"]]
    units = sorted(unit for e in events if isinstance(e, Trained) for unit in e.units)
    assert units == config.method.unit_names
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Runs of one process, one-hot and with learned embeddings."""
    place = tmp_path_factory.mktemp("whole")
    return {
        name: trained(place / name, **changes, **{"train.workers": 1})
        for name, changes in (("one-hot", ONE_HOT), ("d20", D20))
    }


@pytest.mark.parametrize(
    ("name", "embedding"), [("one-hot", ONE_HOT), ("d20", D20)], ids=["one-hot", "d20"]
)
def test_any_number_of_processes_gives_the_same_bits(tmp_path, whole, name, embedding):
    """Weights, statistics and optimizer state of 1, 2, 3 and 4 processes."""
    for workers in (2, 3, 4):
        folder = trained(tmp_path / str(workers), **embedding, **{"train.workers": workers})
        assert_same(whole[name], folder)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("embedding", "numbers"), [(ONE_HOT, (3,)), (D20, (2, 4))], ids=["one-hot", "d20"]
)
def test_and_with_the_convolutions_of_mnist(real_data, tmp_path, embedding, numbers):
    changes = {
        **{**embedding, "method.encoder": "auto", "data.dataset": "mnist"},
        **{"train.epochs": 1, "train.batch_size": 64},
    }
    data = load_data(configured(**changes), real_data("mnist"))
    whole = trained(tmp_path / "1", data, **changes, **{"train.workers": 1})
    for workers in numbers:
        folder = trained(tmp_path / str(workers), data, **changes, **{"train.workers": workers})
        assert_same(whole, folder)


# -- teams whose processes are ours --------------------------------------------------------------


class Sent(TorchDispatchMode):
    """Counts the bytes that torch.distributed sends, underneath all of our code.

    A collective counts with all of its input, for this process and for others.
    """

    def __init__(self):
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and "recv" not in func.__name__:
            inputs = args[1] if "alltoall" in func.__name__ else args[0]
            tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
            size = sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
            name = func.__name__.split(".")[0]
            self.bytes[name] = self.bytes.get(name, 0) + size
        return func(*args, **(kwargs or {}))


def _member(folder: Path, changes: dict[str, Any], processes: int, rank: int, at: int) -> None:
    """A process of a team, which is killed by an error at one of its progress events."""
    torch.set_num_threads(1)
    config, data = configured(**changes), NOISE_DATA
    weight = build_embedding(config, data.task, None).weight.detach()
    job = Job(config, data.task, folder, "a mark", data.train, data.validation, weight)
    layout = choose_layout(config, processes, shards=config.train.shards or 1)
    seen = 0

    def emit(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Epoch)
        if rank == processes - 1 and seen == at:
            raise SystemExit(1)

    store = FileStore(str(folder / "store"), processes)
    with connected_mesh(
        layout, rank, store, coupled=config.method.learned, device=torch.device("cpu")
    ) as team:
        with Sent() as sent:
            for group in share_of_groups(config, layout, rank):
                train_group(job, group, emit, team)
        told = {"counted": sent.bytes, "sent": team.sent}
    (folder / f"sent-{rank}.json").write_text(json.dumps(told))


def together(folder: Path, processes: int, at: int = -1, **changes) -> list[dict[str, Any]]:
    """Train with a team; what each process has sent."""
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    start_server()
    context = multiprocessing.get_context(METHOD)
    jobs = [(folder, changes, processes, rank, at) for rank in range(processes)]
    members = [context.Process(target=_member, args=job) for job in jobs]
    for member in members:
        member.start()
    for member in members:
        member.join(120)
        assert member.exitcode is not None
    paths = [folder / f"sent-{rank}.json" for rank in range(processes)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def steps(config: RunConfig) -> int:
    return config.train.epochs * (len(NOISE) // config.train.batch_size)


def test_along_block_the_gradient_of_w_embed_crosses_each_link_once_each_way(tmp_path, whole):
    """m·d numbers and two more, in each step and direction; nothing else but what ends it."""
    sent = together(tmp_path / "r", 3, **D20)
    message = (10 * 20 + 2) * 4
    links = [1, 2, 1]  # the middle one sends on the sum, and the whole back
    for told, ways in zip(sent, links, strict=True):
        assert told["sent"] == {"block": ways * message * steps(configured()), "data": 0}
        assert told["counted"].pop("send") == told["sent"]["block"]
        # Taking the lock, beginning and ending: some numbers, and a digest of each unit's file,
        # however many steps there are.
        assert sum(told["counted"].values()) <= 64 + 4 * 32
    assert_same(whole["d20"], tmp_path / "r")


def test_with_fixed_embeddings_nothing_crosses_along_block(tmp_path, whole):
    """Not a byte, by the counter underneath: not even to begin and to end."""
    for told in together(tmp_path / "r", 2):
        assert sum(told["counted"].values()) == 0
        assert told["sent"] == {"block": 0, "data": 0}
    assert_same(whole["one-hot"], tmp_path / "r")


@pytest.mark.parametrize("embedding", [ONE_HOT, D20], ids=["one-hot", "d20"])
def test_a_mesh_of_both_axes(tmp_path, embedding):
    """A block and a readout, each of two processes."""
    changes = {**embedding, "train.shards": 2, "train.epochs": 1, "method.num_blocks": 1}
    sent = together(tmp_path / "r", 4, **changes)
    assert len(sent) == 4
    assert all(told["sent"]["data"] > 0 for told in sent)
    whole = trained(tmp_path / "1", **changes, **{"train.workers": 1})
    assert_same(whole, tmp_path / "r")


def test_two_along_data_are_one_with_two_shards(tmp_path):
    """A method of one unit, as ``noprop train --workers 2`` trains it."""
    ct = {"method.name": "ct", "method.steps": 10, "train.shards": 2, "train.epochs": 1}
    runs = []
    for workers in (1, 2):
        events: list[Event] = []
        config = configured(**ct, **{"train.workers": workers})
        noprop.train(config, folder=tmp_path / str(workers), data=NOISE_DATA, emit=events.append)
        assert [e.workers for e in events if isinstance(e, Started)] == [workers]
        assert sum(isinstance(e, Trained) for e in events) == 1
        runs.append(tmp_path / str(workers))
    assert_same(*runs)


class Stopped(BaseException):
    """As abrupt as a signal."""


def test_a_team_that_is_stopped_leaves_a_checkpoint(tmp_path):
    """Of two that share a unit one says nothing, and is not taken for one that still imports."""
    ct = {"method.name": "ct", "method.steps": 10, "train.shards": 2, "train.workers": 2}
    config = configured(**ct, **{"train.checkpoint_every": 1e9, "train.epochs": 1000})

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            raise Stopped

    with pytest.raises(Stopped):
        noprop.train(config, folder=tmp_path / "r", data=NOISE_DATA, emit=stop)
    commit = commit_of(tmp_path / "r", "network")
    assert 0 < commit.position < commit.total


@pytest.mark.parametrize("processes", [1, 3])
def test_any_number_goes_on_from_what_others_have_left(tmp_path, whole, processes):
    """Two processes, of which one ends after its first epoch; the other then ends by itself."""
    folder = tmp_path / "r"
    changes = {**D20, "train.checkpoint_every": 0.0}
    assert together(folder, 2, at=1, **changes) == []
    commit = commit_of(folder, COUPLED)
    assert 0 < commit.position < commit.total
    together(folder, processes, **changes)
    assert_same(whole["d20"], folder)


def test_a_look_at_a_lock_takes_no_group_away(tmp_path):
    """A look holds the lock for a moment, in which a team must not find another at work."""
    lock, held = group_lock(tmp_path, "readout"), threading.Event()

    def look() -> None:
        with hold(lock, ""):
            held.set()
            time.sleep(0.1)

    looker = threading.Thread(target=look)
    looker.start()
    held.wait()
    events: list[Event] = []
    config, data = configured(**{"train.epochs": 1}), NOISE_DATA
    weight = build_embedding(config, data.task, None).weight.detach()
    job = Job(config, data.task, tmp_path, "a mark", data.train, data.validation, weight)
    train_group(job, "readout", events.append)
    looker.join()
    assert isinstance(events[-1], Trained)


def test_the_chain_adds_to_what_comes_from_before(monkeypatch):
    """(1e8 - 1e8) + 1 is 1 in that order alone; any other loses the 1 in float32."""
    made, sent = ProcessMesh.__new__(ProcessMesh), []
    made.rows, made.place, made.ranks = 2, 1, [0, 1]
    made.block, made.sent = None, {"block": 0, "data": 0}  # pyright: ignore[reportAttributeAccessIssue]
    before = torch.tensor([1e8, 1.0, 0.0])
    monkeypatch.setattr(mesh.dist, "recv", lambda message, rank, group: message.copy_(before))
    monkeypatch.setattr(mesh.dist, "send", lambda message, rank, group: sent.append(message))
    own = Requests(save=False, stop=True)
    total, requests = made.sum_over_units([torch.tensor([-1e8]), torch.tensor([1.0])], own)
    assert total.tolist() == [1.0]
    assert requests == Requests(save=True, stop=True)
    assert [message.tolist() for message in sent] == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("world", ["2", "4"])
def test_processes_of_one_machine_listen_on_loopback(monkeypatch, tmp_path, world):
    """Gloo listens on the interface of this name; on several machines on what the user says."""
    name = "GLOO_SOCKET_IFNAME"
    for key, value in {name: "", "RANK": "0", "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    for key, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    del os.environ[name]
    store = FileStore(str(tmp_path / "store"), 2)
    monkeypatch.setattr(
        "noprop.run.rendezvous.rendezvous", lambda *_, **__: iter([(store, 0, int(world))])
    )
    joined()
    assert os.environ.pop(name, None) in (("lo", "lo0") if world == "2" else (None,))
    monkeypatch.setattr("noprop.run.local.connected_mesh", lambda *_, **__: nullcontext())
    layout = Layout((("block-1",), ("block-2",)), 1, 1)
    with local_mesh(layout, 0, tmp_path / "other", coupled=False):
        assert os.environ[name] in ("lo", "lo0")
