"""Blocks that wait in files: the same bits, from any kill, in the memory of one block."""

import dataclasses
import gc
import os
import random
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import noprop
from noprop import encoders, networks
from noprop.build import Task, build_embedding, load_data
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.errors import ConfigError, RunError, TrainingError
from noprop.fingerprint import fingerprint
from noprop.model import load_model
from noprop.run import groups
from noprop.run.folder import create_run
from noprop.run.groups import COUPLED, Job, Material, checkpoint_path, group_trainer
from noprop.run.runs import train_run
from noprop.training import loop
from noprop.training.checkpoint import load_tensors, save_tensors
from noprop.training.events import Damaged, Epoch, Evaluated, Event, Found, Progress, Trained
from noprop.training.generations import newest, previous_of
from noprop.training.loop import GroupTrainer
from noprop.training.offload import Shelf, Waiting, units_wait, whole_checkpoint
from noprop.training.optimizers import optimizer_state
from stops import Clock, Killed

LEARNED = {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 6}
SMALL = {
    **LEARNED,
    "method.num_blocks": 3,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.device": "cpu",
    "train.precision": "float32",
    "train.offload": True,
}
DIGITS = {**SMALL, "method.encoder": "mlp", "train.batch_size": 128, "train.workers": 1}
G = torch.Generator().manual_seed(0)
DATA = Examples(
    torch.randint(256, (72, 1, 8, 8), generator=G, dtype=torch.uint8), torch.arange(72) % 10
)
TASK = Task((1, 8, 8), tuple("0123456789"), Normalization.of(DATA.x))


def quiet(event: Event) -> None:
    """Listen to nothing."""


def task(
    folder: Path, examples: Examples = DATA, factory=None, /, **changes
) -> tuple[Job, Material]:
    """All units on noise images, at most 72: four mini-batches of 16 and a remainder."""
    config = replace(RunConfig(), {**SMALL, **changes})
    weight = build_embedding(config, TASK, None).weight.detach()
    material = Material(examples, examples.take(torch.arange(8)), weight)
    return Job(config, TASK, folder, "a mark", factory), material


def trainer(folder: Path, emit=quiet, /, **changes) -> GroupTrainer:
    return group_trainer(*task(folder, **changes), COUPLED, emit)


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a group's checkpoint, with those of the units that wait beside it."""
    parts = whole_checkpoint(checkpoint_path(folder, COUPLED))
    return {name: tensor for part in parts for name, tensor in part.items()}


def trained(folder: Path, emit=quiet, /, **changes) -> dict[str, Tensor]:
    trainer(folder, emit, **changes).run()
    return weights(folder)


def waiting(folder: Path) -> set[str]:
    """The files of the units that wait."""
    return {p.name for p in folder.glob("units/all/waiting/*")}


def listed(folder: Path) -> set[str]:
    """The files that the checkpoint, and the one before it, say there are."""
    path = checkpoint_path(folder, COUPLED)
    abouts = [load_tensors(p)[1] for p in (path, previous_of(path)) if p.exists()]
    items = [item for about in abouts for item in about["waiting"].items()]
    return {f"{name}.{position}.safetensors" for name, position in items}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


# -- the same bits -------------------------------------------------------------------------------


def without_memory(event: Event) -> Event:
    known = isinstance(event, Trained)
    return dataclasses.replace(event, peak_memory_mb=0.0) if known else event


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_waiting_changes_no_bit(tmp_path, monkeypatch, optimizer):
    """Weights, statistics, optimizer state and every event, of convolutions in channels-last."""
    events: dict[bool, list[Event]] = {False: [], True: []}
    found = {}
    for offload, seen in events.items():
        monkeypatch.setattr(loop, "time", Clock())
        changes = {"train.offload": offload, "train.optimizer": optimizer, "train.flip": True}
        found[offload] = trained(tmp_path / str(offload), seen.append, **changes)
    assert_same(found[False], found[True])
    same = {o: [without_memory(event) for event in seen] for o, seen in events.items()}
    assert same[False] == same[True]
    assert len([e for e in events[True] if isinstance(e, Progress)]) == 2 * 3 * 4 * 2
    assert not (tmp_path / "False" / "units" / "all" / "waiting").exists()
    assert waiting(tmp_path / "True") == listed(tmp_path / "True")
    assert waiting(tmp_path / "True") >= {f"block-{t}.{24 + 8 * t}.safetensors" for t in (1, 2, 3)}


class Projection(nn.Module):
    """An encoder, ready to predict, with numbers drawn when it is made that no checkpoint has."""

    def __init__(self):
        super().__init__()
        self.drawn = torch.randn(64, 12)
        self.layer = nn.Linear(12, 20)
        self.norm = nn.BatchNorm1d(20)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x.flatten(1) @ self.drawn))


def test_a_block_comes_back_as_it_was_made(tmp_path):
    """What an encoder of one's own draws and does not save is the block's own, not another's."""
    found = []
    for offload in (False, True):
        changes = {"train.offload": offload, "method.encoder": "custom"}
        folder = tmp_path / str(offload)
        group_trainer(*task(folder, DATA, Projection, **changes), COUPLED, quiet).run()
        found.append(weights(folder))
    assert_same(*found)


def test_a_run_with_waiting_blocks_loads_and_predicts(tmp_path):
    """noprop.train on digits, twice: one model, one evaluation, and the folder is enough."""
    models, events = [], []
    for offload in (False, True):
        overrides = {**DIGITS, "data.train_size": 300, "evaluation.runs": 2}
        overrides["train.offload"] = offload
        folder = tmp_path / str(offload)
        models.append(noprop.train(folder=folder, overrides=overrides, emit=events.append))
    a, b = models
    x = load_data(b.config).test.x[:50]
    assert torch.equal(a.predict(x), b.predict(x))
    assert torch.equal(a.predict(x), noprop.load(b.folder).predict(x))
    first, second = (e.results for e in events if isinstance(e, Evaluated))
    assert {**first, "training": 0} == {**second, "training": 0}
    again: list[Event] = []
    noprop.resume(b.folder, emit=again.append)
    assert again[0] == Found(COUPLED)


@pytest.mark.parametrize(
    "changes",
    [
        {"method.learned": False},
        {"method.learned": False, "train.order": "parallel"},
        {"method.name": "fm"},
        {"method.name": "backprop", "train.order": "parallel"},
    ],
)
def test_where_no_block_would_wait_the_option_does_nothing(tmp_path, changes):
    """Fixed embeddings: each unit is a group of its own. Methods of one unit: it is at work."""
    small = {**DIGITS, "train.epochs": 1, "data.train_size": 200}
    config = replace(replace(RunConfig(), small), changes)
    assert config.train.offload
    assert not units_wait(config)
    data = load_data(config)
    models = []
    for offload in (False, True):
        own = replace(config, {"train.offload": offload})
        create_run(tmp_path / str(offload), own)
        models.append(train_run(tmp_path / str(offload), own, data, quiet))
    for a, b in zip(*(model.method.units for model in models), strict=True):
        assert_same(a.module.state_dict(), b.module.state_dict())
    assert not list(tmp_path.rglob("waiting"))


# -- stops and kills -----------------------------------------------------------------------------


def test_a_stop_at_every_update_changes_nothing(tmp_path, monkeypatch):
    """Between mini-batches and in them; and the shelf then holds what the checkpoint lists."""
    monkeypatch.setattr(loop, "time", Clock())
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    folder, total, taken_up = tmp_path / "parts", 2 * 3 * 4 * 2, set()
    for n in range(1, total + 1):

        def stop(event: Event, n=n) -> None:
            if isinstance(event, Progress) and event.position >= n:
                raise Killed

        made = trainer(folder, stop)
        made.resume()
        taken_up.add(made.position)
        assert not n > 2 or waiting(folder) == listed(folder)
        with pytest.raises(Killed):
            made.run()
    made = trainer(folder)
    made.resume()
    made.run()
    assert taken_up == set(range(0, total, 2))
    assert_same(whole, weights(folder))
    assert waiting(folder) == listed(folder)


def test_ctrl_c_while_a_block_is_brought_changes_nothing(tmp_path, monkeypatch):
    """A signal can arrive after one block is put away and before the next is there."""
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    folder = tmp_path / "run"
    made = trainer(folder)
    for _ in range(6):
        made.step()
    made.save()

    def take(self: Shelf, name: str):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "take", take)
        with pytest.raises(KeyboardInterrupt):
            made.run()
    again = trainer(folder)
    again.resume()
    assert again.position == 6
    again.run()
    assert_same(whole, weights(folder))


class Disk:
    """Files are renamed and deleted as ever until one operation, at which the process dies.

    Nothing reaches the disk after it. ``late`` is to die just after the operation took effect.
    """

    def __init__(self, patch: pytest.MonkeyPatch, left: float, late: bool):
        self.left, self.late = left, late
        for place, name in ((os, "replace"), (Path, "unlink")):
            patch.setattr(place, name, self._counted(getattr(place, name)))

    def _counted(self, real):
        def operation(path, *args, **kwargs):
            if self.left <= 0:
                raise Killed
            self.left -= 1
            if self.left == 0 and not self.late:
                raise Killed
            real(path, *args, **kwargs)
            if self.left == 0:
                raise Killed

        return operation


@pytest.mark.slow
def test_a_kill_at_any_operation_on_files_changes_nothing(tmp_path, monkeypatch):
    """Each write and each deletion in turn is what a kill comes before.

    A checkpoint after every mini-batch, and none but the last: then blocks go to the shelf twice
    between checkpoints. To come just after an operation is to come before the next, but for what
    the next has begun to write; so that is tried with the fewer ones alone. The networks are
    narrow, for their files are written hundreds of times.
    """
    for module in (encoders, networks):
        monkeypatch.setattr(module, "WIDTH", 8)
    small = {"method.num_blocks": 2, "method.encoder": "mlp"}
    few = DATA.take(torch.arange(34))  # two mini-batches
    made = group_trainer(
        *task(tmp_path / "w", few, **small, **{"train.offload": False}), "all", quiet
    )
    made.run()
    whole = weights(tmp_path / "w")
    for every, late, least in ((0.0, False, 40), (1e9, False, 6), (1e9, True, 6)):
        operations = 0
        while True:
            operations += 1
            folder = tmp_path / f"{every}-{late}-{operations}"
            one = task(folder, few, **small, **{"train.checkpoint_every": every})
            with pytest.MonkeyPatch.context() as patch:
                Disk(patch, operations, late)
                try:
                    group_trainer(*one, COUPLED, quiet).run()
                    break
                except Killed:
                    pass
            again = group_trainer(*one, COUPLED, quiet)
            again.resume()
            if again.position:
                assert waiting(folder) == listed(folder)
            else:
                assert not waiting(folder)
            again.run()
            assert_same(whole, weights(folder))
            assert waiting(folder) == listed(folder)
        assert operations > least


SCRIPT = """
import sys
from pathlib import Path
from noprop.build import load_data
from noprop.model import open_run
from noprop.run.runs import train_run
if __name__ == "__main__":
    config = open_run(Path(sys.argv[1]))
    train_run(Path(sys.argv[1]), config, load_data(config), lambda event: None)
"""


@pytest.mark.slow
def test_kill_minus_9_loses_nothing_that_was_saved(tmp_path):
    """SIGKILL at random moments, twice, with a checkpoint after every mini-batch."""
    config = replace(RunConfig(), {**DIGITS, "train.checkpoint_every": 0.0, "train.epochs": 3})
    data, folder, script = load_data(config), tmp_path / "killed", tmp_path / "script.py"
    create_run(tmp_path / "whole", config)
    once = {"train.checkpoint_every": 1e9, "train.offload": False}
    train_run(tmp_path / "whole", replace(config, once), data, quiet)
    create_run(folder, config)
    script.write_text(SCRIPT)
    path, rng, positions = checkpoint_path(folder, COUPLED), random.Random(0), [0]
    for _ in range(2):
        process = subprocess.Popen([sys.executable, str(script), str(folder)])
        before = path.stat().st_mtime_ns if path.exists() else 0
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if path.exists() and path.stat().st_mtime_ns != before:
                    break
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
        finally:
            process.kill()
            process.wait()
        assert not psutil.pid_exists(process.pid)
        found = newest(path, load_tensors)  # it may die between the renames of two checkpoints
        assert found is not None
        positions.append(found.content[1]["position"])
        assert listed(folder) <= waiting(folder)
    (folder / "units/all/waiting/.block-1.2.safetensors.7.tmp").write_bytes(b"half")
    (folder / "units/all/waiting/block-1.1.safetensors").write_bytes(b"of no checkpoint")
    assert positions == sorted(set(positions))
    model = train_run(folder, replace(config, {"train.checkpoint_every": 1e9}), data, quiet)
    assert_same(weights(tmp_path / "whole"), weights(folder))
    assert waiting(folder) == listed(folder)
    assert len(model.method.units) == 4


def test_without_a_checkpoint_what_lies_on_the_shelf_is_swept(tmp_path):
    """A process was killed before its first checkpoint."""
    made = trainer(tmp_path)
    for _ in range(9):
        made.step()
    assert waiting(tmp_path) == {"block-1.8.safetensors"}
    again = trainer(tmp_path)
    again.resume()
    assert not waiting(tmp_path)


def test_at_most_three_files_a_block(tmp_path):
    """However rarely a checkpoint is written."""
    seen = []
    made = trainer(tmp_path, **{"train.epochs": 4})
    for n in range(4 * 3 * 4 * 2):
        made.step()
        if n == 9:
            made.save()
        seen.append(len(waiting(tmp_path)))
    assert max(seen) <= 3 * 3
    made.run()
    assert waiting(tmp_path) == listed(tmp_path)
    assert len(waiting(tmp_path)) <= 2 * 3


# -- the memory of one ---------------------------------------------------------------------------


def tensors_of(made: GroupTrainer) -> list[Tensor]:
    """Weights, statistics, gradients and optimizer state of the units in memory."""
    found = []
    for unit, optimizer in zip(made.units, made.state.optimizers, strict=True):
        found += [*unit.module.parameters(), *unit.module.buffers()]
        found += [p.grad for p in unit.parameters if p.grad is not None]
        if optimizer:
            state = optimizer_state(optimizer)
            found += [v for moments in state.values() for v in moments.values()]
    return found


@pytest.mark.parametrize("num_blocks", [2, 5])
def test_one_block_is_in_memory(tmp_path, monkeypatch, num_blocks):
    """By weak references: when a block is made no tensor of another is left, whatever T is.

    Without the garbage collector, which would come too late.
    """
    seen: dict[int, weakref.ref[Tensor]] = {}
    bytes_alive, built = [], []
    monkeypatch.setattr(loop, "time", Clock())

    def note(made: GroupTrainer) -> None:
        seen.update({id(t): weakref.ref(t) for t in tensors_of(made)})

    def alive() -> int:
        tensors = [t for ref in seen.values() if (t := ref()) is not None]
        return sum(t.untyped_storage().nbytes() for t in tensors)

    real = Shelf.take

    def take(self: Shelf, name: str):
        assert all(isinstance(u, Waiting) for u in made.units[:-1])
        bytes_alive.append(alive())
        unit, tensors = real(self, name)
        built.append(name)
        return unit, tensors

    monkeypatch.setattr(Shelf, "take", take)
    peak = []

    def listen(event: Event) -> None:
        note(made)
        peak.append(alive())

    made = trainer(tmp_path, listen, **{"method.num_blocks": num_blocks})
    note(made)
    gc.disable()
    try:
        made.run()
    finally:
        gc.enable()
    assert built == [f"block-{t}" for t in range(1, num_blocks + 1)] * 2
    (block,) = (u for u in made.units[:-1] if not isinstance(u, Waiting))
    one = sum(p.numel() * p.element_size() for p in block.parameters)
    assert max(bytes_alive) < 0.01 * one  # the readout's alone
    assert 3 * one < max(peak) < 3.05 * one  # weights and two moments; gradients are gone


def test_no_block_is_made_before_its_turn(tmp_path, monkeypatch):
    """Nor at the start, nor for a checkpoint: one at a time, ten in five epochs of two blocks."""
    made: list[str] = []
    real = groups.build_method

    def build(*args: Any, only: str | None = None, **kwargs: Any):
        assert only is not None
        made.append(only)
        return real(*args, only=only, **kwargs)

    monkeypatch.setattr(groups, "build_method", build)
    one = trainer(tmp_path, **{"method.num_blocks": 2, "train.epochs": 5})
    assert made == ["readout"]
    one.run()
    assert made[1:] == ["block-1", "block-2"] * 5


# -- refusals ------------------------------------------------------------------------------------


def test_parallel_order_visits_every_block_and_is_refused():
    """Each mini-batch would move T blocks in and out of files."""
    with pytest.raises(ConfigError) as caught:
        replace(RunConfig(), {**SMALL, "train.order": "parallel"})
    text = str(caught.value)
    for words in ("train.offload: ", "method.learned", "train.order=parallel", "every block"):
        assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("before", [False, True])
def test_a_training_begun_otherwise_is_refused(tmp_path, before):
    """Until it is finished: then both forms are read alike."""
    config = replace(RunConfig(), {**DIGITS, "train.offload": before})
    other = replace(config, {"train.offload": not before})
    data, folder = load_data(config), tmp_path / "run"
    assert fingerprint(config, data.train) == fingerprint(other, data.train)
    create_run(folder, config)

    def stop(event: Event) -> None:
        if isinstance(event, Epoch) and event.unit == "readout":
            raise Killed

    with pytest.raises(Killed):
        train_run(folder, config, data, stop)
    was, now = ("on", "off") if before else ("off", "on")
    files = {p: p.read_bytes() for p in folder.glob("units/**/*.safetensors")}
    with pytest.raises(RunError, match=f"written with train.offload {was}, now it is {now}"):
        train_run(folder, other, data, quiet)
    assert files == {p: p.read_bytes() for p in folder.glob("units/**/*.safetensors")}
    train_run(folder, config, data, quiet)
    events: list[Event] = []
    train_run(folder, other, data, events.append)
    assert events[0] == Found(COUPLED)


@pytest.mark.parametrize("damage", ["cut", "of another run", "another architecture"])
def test_a_waiting_file_that_is_not_as_it_was_is_named(tmp_path, damage):
    """At once if it is damaged, else when its block's turn comes; nothing is trained from it."""
    first = trainer(tmp_path)
    for _ in range(26):
        first.step()
    first.save()
    path = tmp_path / "units/all/waiting/block-2.16.safetensors"
    tensors, about = load_tensors(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "of another run":
        save_tensors(path, tensors, {"fingerprint": "another mark"})
    else:
        save_tensors(path, dict(list(tensors.items())[1:]), about)
    words = {
        "cut": r"block-2\.16\.safetensors: is damaged .* and is the only one; delete .*units/all",
        "of another run": r"block-2\.16\.safetensors: was trained with other settings",
        "another architecture": "belongs to another architecture: ",
    }
    made = trainer(tmp_path)
    with pytest.raises(RunError, match=words[damage]) as caught:  # noqa: PT012
        made.resume()
        made.run()
    assert "\n" not in str(caught.value)
    assert made.position == (0 if damage == "cut" else 32)
    assert load_tensors(checkpoint_path(tmp_path, COUPLED))[1]["position"] == 26


@pytest.mark.parametrize("damage", ["checkpoint", "waiting file", "missing"])
def test_the_checkpoint_before_has_its_files_too(tmp_path, damage):
    """A bit of the last one, or a file that it alone lists: it goes on from the one before."""
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    made, folder = trainer(tmp_path / "r"), tmp_path / "r"
    for position in range(1, 39):
        made.step()
        if position in (20, 30, 38):
            made.save()
    path = checkpoint_path(folder, COUPLED)
    now, before = (load_tensors(p)[1]["waiting"] for p in (path, previous_of(path)))
    name = next(name for name in now if now[name] != before[name])
    broken = path
    if damage != "checkpoint":
        broken = path.parent / "waiting" / f"{name}.{now[name]}.safetensors"
    content = bytearray(broken.read_bytes())
    content[-10] ^= 1
    broken.write_bytes(content) if damage != "missing" else broken.unlink()
    events: list[Event] = []
    again = trainer(folder, events.append)
    again.resume()
    assert again.position == 30
    (event,) = events
    assert isinstance(event, Damaged)
    assert str(broken) in event.reason
    assert waiting(folder) == listed(folder)
    again.run()
    assert_same(whole, weights(folder))
    assert waiting(folder) == listed(folder)


def test_a_waiting_file_that_is_missing_is_named_at_once(tmp_path):
    made = trainer(tmp_path)
    for _ in range(26):
        made.step()
    made.save()
    (tmp_path / "units/all/waiting/block-2.16.safetensors").unlink()
    words = r"block-2\.16\.safetensors: is missing, and .*checkpoint\.safetensors goes on from it"
    with pytest.raises(RunError, match=words):
        trainer(tmp_path).resume()


def test_weights_that_are_not_finite_do_not_go_to_the_shelf(tmp_path):
    """A checkpoint might list them later, when they are out of sight."""
    made = trainer(tmp_path)
    for _ in range(8):
        made.step()
    with torch.no_grad():
        made.units[0].parameters[0].fill_(torch.nan)
    with pytest.raises(
        TrainingError, match="block-1: the weights are not finite by update 8 of 48"
    ):
        made.run()
    assert not waiting(tmp_path)


def test_a_full_disk_while_a_block_is_put_away_stops_training_with_one_line(tmp_path, monkeypatch):
    """It names the file, and training goes on from the checkpoint before."""
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    made = trainer(tmp_path / "run")
    for _ in range(6):
        made.step()
    made.save()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("noprop.training.checkpoint.os.replace", full)
        with pytest.raises(RunError, match=r"block-1\.8\.safetensors: cannot be written: No space"):
            made.run()
    again = trainer(tmp_path / "run")
    again.resume()
    assert again.position == 6
    again.run()
    assert_same(whole, weights(tmp_path / "run"))


def test_the_finished_model_is_that_of_the_files(tmp_path):
    """Every block's weights are found, and a file that is missing is named."""
    config = replace(RunConfig(), {**DIGITS, "train.epochs": 1})
    data = load_data(config)
    create_run(tmp_path / "run", config)
    model = train_run(tmp_path / "run", config, data, quiet)
    found = weights(tmp_path / "run")
    for unit in model.method.units:
        for name, value in unit.module.state_dict().items():
            assert torch.equal(found[f"{unit.name}/module/{name}"], value)
    assert not (tmp_path / "run" / "model.json").exists()
    with pytest.raises(RunError, match="not trained to its end"):
        load_model(tmp_path / "run")
    path = next((tmp_path / "run/units/all/waiting").iterdir())
    path.unlink()
    with pytest.raises(RunError, match=path.name):
        train_run(tmp_path / "run", config, data, quiet)
