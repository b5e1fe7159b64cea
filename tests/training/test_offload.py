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
from noprop.build import build_embedding
from noprop.config import RunConfig, replace
from noprop.data import Examples
from noprop.errors import ConfigError, RunError, TrainingError
from noprop.fingerprint import fingerprint
from noprop.methods.base import Unit
from noprop.model import load
from noprop.run import worker
from noprop.run.folder import create_run
from noprop.run.units import COUPLED, group_folder
from noprop.run.worker import Job, group_trainer, units_wait
from noprop.task import load_data
from noprop.tensor_files import load_tensors
from noprop.training import trainer as trainer_module
from noprop.training.commits import (
    LAST,
    PREVIOUS,
    kept_epochs,
    read_commit,
    write_commit,
    write_part,
)
from noprop.training.events import Damaged, Evaluated, Event, Found, Progress, Trained
from noprop.training.optimizers import optimizer_state
from noprop.training.state import Parked
from noprop.training.trainer import Trainer
from tools import (
    IN_PROCESS,
    LEARNED,
    NOISE,
    NOISE_TASK,
    Clock,
    Killed,
    alter,
    assert_same,
    commit_of,
    files_of,
    train_run,
    weights,
)

SMALL = {
    **IN_PROCESS,
    **LEARNED,
    "method.dim": 6,
    "method.num_blocks": 3,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.offload": True,
}
DIGITS = {**SMALL, "method.encoder": "mlp", "train.batch_size": 128}


def quiet(event: Event) -> None:
    """Listen to nothing."""


def task(folder: Path, examples: Examples = NOISE, encoder=None, /, **changes) -> Job:
    """All units on noise images, at most 72: four mini-batches of 16 and a remainder."""
    config = replace(RunConfig(), {**SMALL, **changes})
    weight = build_embedding(config, NOISE_TASK, None).weight.detach()
    parts = examples, examples.take(torch.arange(8))
    return Job(config, NOISE_TASK, folder, "a mark", *parts, weight, encoder)


def trainer(folder: Path, emit=quiet, /, **changes) -> Trainer:
    return group_trainer(task(folder, **changes), COUPLED, emit)


def trained(folder: Path, emit=quiet, /, **changes) -> dict[str, Tensor]:
    trainer(folder, emit, **changes).run()
    return weights(folder)


def files(folder: Path) -> set[str]:
    """The files of parts in the folder of the group."""
    return {p.name for p in group_folder(folder, COUPLED).glob("*.safetensors")}


def named(folder: Path) -> set[str]:
    """The files that the last commit, and the one before it, name."""
    paths = (group_folder(folder, COUPLED) / name for name in (LAST, PREVIOUS))
    commits = [read_commit(path) for path in paths if path.exists()]
    return {part.file for commit in commits for part in commit.files.values()}


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
        monkeypatch.setattr(trainer_module, "time", Clock())
        changes = {"train.offload": offload, "train.optimizer": optimizer, "train.flip": True}
        found[offload] = trained(tmp_path / str(offload), seen.append, **changes)
    assert_same(found[False], found[True])
    same = {o: [without_memory(event) for event in seen] for o, seen in events.items()}
    assert same[False] == same[True]
    assert len([e for e in events[True] if isinstance(e, Progress)]) == 2 * 3 * 4 * 2
    for folder in (tmp_path / "True", tmp_path / "False"):
        assert files(folder) == named(folder)
    assert files(tmp_path / "True") >= {f"block-{t}.{24 + 8 * t}.safetensors" for t in (1, 2, 3)}


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
        group_trainer(task(folder, NOISE, Projection, **changes), COUPLED, quiet).run()
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


# -- stops and kills -----------------------------------------------------------------------------


@pytest.mark.usefixtures("narrow")
def test_a_stop_at_every_update_changes_nothing(tmp_path, monkeypatch):
    """Between mini-batches and in them; and the shelf then holds what the checkpoint lists."""
    monkeypatch.setattr(trainer_module, "time", Clock())
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    folder, total, taken_up = tmp_path / "parts", 2 * 3 * 4 * 2, set()
    for n in range(1, total + 1):

        def stop(event: Event, n=n) -> None:
            if isinstance(event, Progress) and event.position >= n:
                raise Killed

        made = trainer(folder, stop)
        made.resume()
        taken_up.add(made.position)
        assert not n > 2 or files(folder) == named(folder)
        with pytest.raises(Killed):
            made.run()
    made = trainer(folder)
    made.resume()
    made.run()
    assert taken_up == set(range(0, total, 2))
    assert_same(whole, weights(folder))
    assert files(folder) == named(folder)


def test_ctrl_c_while_a_block_is_brought_changes_nothing(tmp_path, monkeypatch):
    """A signal can arrive after one block is put away and before the next is there."""
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    folder = tmp_path / "run"
    made = trainer(folder)
    for _ in range(6):
        made.step()
    made.save()

    def interrupt(name: str):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made.state, "build", interrupt)
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


KINDS: dict[str, dict[str, Any]] = {
    "one unit": {"method.learned": False},
    "coupled": {"train.offload": False, "train.epochs": 1},
    "parallel": {"train.offload": False, "train.epochs": 1, "train.order": "parallel"},
    "kept": {"train.offload": False, "train.keep_every": 1, "train.checkpoint_every": 1e9},
    "offload": {"train.epochs": 1},
    "offload, one commit": {"train.checkpoint_every": 1e9},
    "offload, one commit, late": {"train.checkpoint_every": 1e9},
}


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_operation_on_files_changes_nothing(tmp_path, kind):
    """Each renaming and each deletion in turn is what a kill comes before.

    A commit after every mini-batch, or none but the last: then blocks are parked twice between
    commits. To come just after an operation is to come before the next, but for what the next has
    begun to write; so that is tried with the fewer operations alone.
    """
    small = {"method.num_blocks": 2, "method.encoder": "mlp", "train.checkpoint_every": 0.0}
    small |= KINDS[kind]
    group = "block-1" if kind == "one unit" else COUPLED
    few = NOISE.take(torch.arange(34))  # two mini-batches
    once = {**small, "train.checkpoint_every": 1e9, "train.keep_every": 0, "train.offload": False}
    group_trainer(task(tmp_path / "w", few, None, **once), group, quiet).run()
    whole = weights(tmp_path / "w")
    operations = 0
    while True:
        operations += 1
        folder = tmp_path / f"{operations}"
        one = task(folder, few, None, **small)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, operations, kind.endswith("late"))
            try:
                group_trainer(one, group, quiet).run()
                break
            except Killed:
                pass
        again = group_trainer(one, group, quiet)
        again.resume()
        place = group_folder(folder, group)
        manifests = [read_commit(path) for path in place.glob("*.json")]
        wanted = {part.file for commit in manifests for part in commit.files.values()}
        assert {path.name for path in place.glob("*.safetensors")} == wanted
        again.run()
        assert_same(whole, weights(folder))
        if kind == "kept":
            assert kept_epochs(group_folder(folder, group)) == {1, 2}
    assert operations > 12


SCRIPT = """
import sys
from pathlib import Path
from noprop.task import load_data
from noprop.model import open_run
from noprop.run.run import Run
if __name__ == "__main__":
    config = open_run(Path(sys.argv[1]))
    Run(Path(sys.argv[1]), config, load_data(config)).train()
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
    path, rng, positions = group_folder(folder, COUPLED) / LAST, random.Random(0), [0]
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
        positions.append(commit_of(folder, COUPLED).position)
        assert named(folder) <= files(folder)
    (folder / "units/all/.block-1.2.safetensors.7.tmp").write_bytes(b"half")
    (folder / "units/all/block-1.1.safetensors").write_bytes(b"of no commit")
    assert positions == sorted(set(positions))
    model = train_run(folder, replace(config, {"train.checkpoint_every": 1e9}), data, quiet)
    assert_same(weights(tmp_path / "whole"), weights(folder))
    assert files(folder) == named(folder)
    assert len(model.method.units) == 4


def test_without_a_commit_the_files_of_parked_units_are_deleted(tmp_path):
    """A process was killed before its first commit."""
    made = trainer(tmp_path)
    for _ in range(9):
        made.step()
    assert files(tmp_path) == {"block-1.8.safetensors"}
    again = trainer(tmp_path)
    again.resume()
    assert not files(tmp_path)


def test_at_most_three_files_a_block(tmp_path):
    """However rarely a checkpoint is written."""
    seen = []
    made = trainer(tmp_path, **{"train.epochs": 4})
    for n in range(4 * 3 * 4 * 2):
        made.step()
        if n == 9:
            made.save()
        seen.append(len(files(tmp_path)))
    assert max(seen) <= 3 * 5  # three blocks, the readout, and what they share
    made.run()
    assert files(tmp_path) == named(tmp_path)
    assert len(files(tmp_path)) <= 2 * 5


# -- the memory of one ---------------------------------------------------------------------------


def tensors_of(made: Trainer) -> list[Tensor]:
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
    monkeypatch.setattr(trainer_module, "time", Clock())

    def note(made: Trainer) -> None:
        seen.update({id(t): weakref.ref(t) for t in tensors_of(made)})

    def alive() -> int:
        tensors = [t for ref in seen.values() if (t := ref()) is not None]
        return sum(t.untyped_storage().nbytes() for t in tensors)

    def build(name: str) -> Unit:
        assert real
        assert all(isinstance(u, Parked) for u in made.units[:-1])
        bytes_alive.append(alive())
        built.append(name)
        return real(name)

    peak = []

    def listen(event: Event) -> None:
        note(made)
        peak.append(alive())

    made = trainer(tmp_path, listen, **{"method.num_blocks": num_blocks})
    real = made.state.build
    assert real
    made.state.build = build
    note(made)
    gc.disable()
    try:
        made.run()
    finally:
        gc.enable()
    assert built == [f"block-{t}" for t in range(1, num_blocks + 1)] * 2
    (block,) = (u for u in made.units[:-1] if not isinstance(u, Parked))
    one = sum(p.numel() * p.element_size() for p in block.parameters)
    assert max(bytes_alive) < 0.01 * one  # the readout's alone
    assert 3 * one < max(peak) < 3.05 * one  # weights and two moments; gradients are gone


def test_no_block_is_made_before_its_turn(tmp_path, monkeypatch):
    """Nor at the start, nor for a checkpoint: one at a time, ten in five epochs of two blocks."""
    made: list[str] = []
    real = worker.build_method

    def build(*args: Any, only: str | None = None, **kwargs: Any):
        assert only is not None
        made.append(only)
        return real(*args, only=only, **kwargs)

    monkeypatch.setattr(worker, "build_method", build)
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
def test_a_training_begun_otherwise_is_resumed(tmp_path, monkeypatch, before):
    """Stopped at several updates, and resumed with the other setting each time: the same bits."""
    monkeypatch.setattr(trainer_module, "time", Clock())
    whole = trained(tmp_path / "whole", **{"train.offload": before})
    offload, stops = before, [3, 9, 14, 20, 31, 40]

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and stops and event.position >= stops[0]:
            stops.pop(0)
            raise Killed

    while True:
        made = trainer(tmp_path / "r", stop, **{"train.offload": offload})
        made.resume()
        try:
            made.run()
            break
        except Killed:
            offload = not offload
    assert not stops
    assert_same(whole, weights(tmp_path / "r"))
    config = replace(RunConfig(), DIGITS)
    other = replace(config, {"train.offload": False})
    data = load_data(config)
    assert fingerprint(config, data.train) == fingerprint(other, data.train)


@pytest.mark.parametrize("damage", ["cut", "missing", "another architecture"])
def test_a_file_of_a_parked_unit_that_is_not_as_it_was_is_named(tmp_path, damage):
    """At once if it is damaged, else when its unit's turn comes; nothing is trained from it."""
    first = trainer(tmp_path)
    for _ in range(26):
        first.step()
    first.save()
    place = group_folder(tmp_path, COUPLED)
    path = place / "block-2.16.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    else:
        tensors = dict(list(load_tensors(path)[0].items())[1:])
        part = write_part(place, "block-2", 16, tensors)
        commit = read_commit(place / LAST)
        write_commit(place, dataclasses.replace(commit, files={**commit.files, "block-2": part}))
        (place / PREVIOUS).unlink()
    words = {
        "cut": r"block-2\.16\.safetensors: is damaged .* and there is no earlier .*; delete .*/all",
        "missing": r"block-2\.16\.safetensors: is missing, and .*commit\.json needs it",
        "another architecture": "belongs to another architecture: ",
    }
    made = trainer(tmp_path)
    with pytest.raises(RunError, match=words[damage]) as caught:  # noqa: PT012
        made.resume()
        made.run()
    assert "\n" not in str(caught.value)
    assert made.position == (32 if damage == "another architecture" else 0)
    assert read_commit(place / LAST).position == 26


@pytest.mark.parametrize("damage", ["manifest", "file", "missing"])
def test_the_commit_before_has_its_files_too(tmp_path, damage):
    """A bit of the last one, or a file that it alone names: resumed from the one before."""
    whole = trained(tmp_path / "whole", **{"train.offload": False})
    made, folder = trainer(tmp_path / "r"), tmp_path / "r"
    for position in range(1, 39):
        made.step()
        if position in (20, 30, 38):
            made.save()
    place = group_folder(folder, COUPLED)
    now, before = (read_commit(place / name).files for name in (LAST, PREVIOUS))
    broken = place / next(part.file for name, part in now.items() if part != before[name])
    if damage == "manifest":
        broken = place / LAST
        broken.write_bytes(broken.read_bytes()[:-3])
    elif damage == "file":
        alter(broken)
    else:
        broken.unlink()
    events: list[Event] = []
    again = trainer(folder, events.append)
    again.resume()
    assert again.position == 30
    assert [type(e) for e in events] == [Damaged]
    assert isinstance(events[0], Damaged)
    assert str(broken) in events[0].reason
    assert files(folder) == named(folder)
    again.run()
    assert_same(whole, weights(folder))
    assert files(folder) == named(folder)


def test_weights_that_are_not_finite_are_not_parked(tmp_path):
    """A commit might name them later, when they are out of sight."""
    made = trainer(tmp_path)
    for _ in range(8):
        made.step()
    with torch.no_grad():
        made.units[0].parameters[0].fill_(torch.nan)
    with pytest.raises(
        TrainingError, match="block-1: the weights are not finite by update 8 of 48"
    ):
        made.run()
    assert not files(tmp_path)


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
        patch.setattr("noprop.files.os.replace", full)
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
            assert torch.equal(found[f"all:{unit.name}/module/{name}"], value)
    assert not (tmp_path / "run" / "model.json").exists()
    with pytest.raises(RunError, match="training has not finished"):
        load(tmp_path / "run")
    path = files_of(tmp_path / "run", COUPLED)["block-2"]
    path.unlink()
    with pytest.raises(RunError, match=path.name):
        train_run(tmp_path / "run", config, data, quiet)
