"""Faults made for real: kills, signals, damage and full disks; the weights are those without.

Every process here is one of the command line, and every fault is answered by starting it again.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch

import noprop
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.errors import RunError
from noprop.training import checkpoint as checkpoint_module
from noprop.training.checkpoint import DamagedError, load_tensors, save_tensors
from noprop.training.generations import newest, previous_of, save_generation
from noprop.training.workers import checkpoint_path, groups_of

CONFIG = replace(
    RunConfig(),
    {
        "method.num_blocks": 2,
        "method.encoder": "mlp",
        "data.train_size": 200,
        "train.epochs": 2,
        "train.batch_size": 8,  # 45 updates a block and more
        "train.workers": 1,
        "train.device": "cpu",
        "train.precision": "float32",
        "train.checkpoint_every": 0.0,
        "evaluation.runs": 2,
    },
)
Event = dict


class Stopped(BaseException):
    """As abrupt as a signal."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run trained by one undisturbed process."""
    return noprop.train(CONFIG, folder=tmp_path_factory.mktemp("whole") / "r").folder


def assert_same(a: Path, b: Path) -> None:
    """Every tensor of every checkpoint: weights, statistics and optimizer state."""
    for group in groups_of(CONFIG):
        x, y = (load_tensors(checkpoint_path(folder, group))[0] for folder in (a, b))
        assert x.keys() == y.keys()
        assert not [name for name in x if not torch.equal(x[name], y[name])]


def stopped_at(folder: Path, position: int, units: tuple[str, ...] = ("block-1",)) -> Path:
    """A run whose block-1 has a checkpoint of an update, and one of the update before it."""

    def stop(event: Event) -> None:
        if event["event"] == "progress" and event["position"] >= position:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:  # every update is reported
        patch.setattr("noprop.training.loop.time", Clock())
        with contextlib.suppress(Stopped):
            noprop.train_units(folder, units, CONFIG, emit=stop)
    return checkpoint_path(folder, "block-1")


class Clock:
    """A second passes between any two looks."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


# -- damage --------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def altered(path: Path) -> None:
    """One bit, in the middle of a weight."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    """A kill between two renames leaves only the one before."""
    path.unlink()


@pytest.mark.parametrize("damage", [cut, altered, emptied, removed])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(capsys, whole, tmp_path, damage):
    """One line says so; the weights in the end are the same."""
    folder = tmp_path / "r"
    path = stopped_at(folder, 10)
    assert [load_tensors(p)[1]["position"] for p in (path, previous_of(path))] == [10, 9]
    damage(path)
    assert main(["train", "--resume", str(folder)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "going on from" in line]
    assert len(said) == (damage is not removed)
    assert all(str(path) in line and "update 9 of" in line for line in said)
    assert_same(whole, folder)


def test_a_damaged_one_never_takes_the_place_of_a_good_one(tmp_path):
    """After going on from the one before, both are good from the first moment."""
    path = stopped_at(tmp_path / "r", 10)
    cut(path)

    def stop(event: Event) -> None:
        if event["event"] == "damaged":
            raise Stopped

    with pytest.raises(Stopped):
        noprop.train_units(tmp_path / "r", ["block-1"], emit=stop)
    assert load_tensors(path)[1]["position"] == 9
    assert not previous_of(path).exists()


def test_when_both_are_damaged_the_error_says_what_to_delete(capsys, whole, tmp_path):
    path = stopped_at(tmp_path / "r", 10)
    cut(path)
    altered(previous_of(path))
    assert main(["train", "--resume", str(tmp_path / "r"), "--quiet"]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert f"and so is {previous_of(path).name}; delete {path.parent} to train it anew" in text
    shutil.rmtree(path.parent)
    noprop.resume(tmp_path / "r")
    assert_same(whole, tmp_path / "r")


def test_assemble_goes_not_on_from_a_damaged_unit(capsys, whole, tmp_path):
    """One bit of a weight of a finished unit; resume mends it."""
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    (folder / "model.json").unlink()
    path = checkpoint_path(folder, "block-2")
    about = load_tensors(previous_of(path))[1]
    assert about["position"] == about["total"]  # after every update, and at the end
    altered(path)
    altered(previous_of(path))
    assert main(["assemble", str(folder), "--quiet"]) == 1
    assert f"{path}: is damaged" in capsys.readouterr().err
    assert not (folder / "model.json").exists()
    path.unlink()
    previous_of(path).unlink()
    noprop.resume(folder)
    assert_same(whole, folder)


def test_every_byte_of_a_checkpoint_counts(tmp_path):
    """Any altered byte is found, or changes nothing that is read."""
    path = tmp_path / "c.safetensors"
    tensors = {"a": torch.arange(6.0), "b": torch.tensor([True]), "c": torch.empty(0)}
    tensors["d"] = torch.tensor(1.5, dtype=torch.bfloat16)
    save_tensors(path, tensors, {"position": 3})
    good, (found, said) = path.read_bytes(), load_tensors(path)
    refused = 0
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 4]) + good[i + 1 :])
        try:
            other, about = load_tensors(path)
        except DamagedError:
            refused += 1
            continue
        assert about == said
        assert other.keys() == found.keys()
        assert all(torch.equal(other[n], found[n]) for n in found)
    assert refused > 0.9 * len(good)


def test_a_kill_at_any_rename_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    real, path = os.replace, tmp_path / "c.safetensors"
    for n in range(3):
        save_generation(path, {"a": torch.tensor(n)}, {})
    for late in (False, True):
        for number in (1, 2):
            calls = []

            def killed(a, b, late=late, number=number, calls=calls):
                calls.append(b)
                if len(calls) == number and not late:
                    raise Stopped
                real(a, b)
                if len(calls) == number:
                    raise Stopped

            with monkeypatch.context() as patch:
                patch.setattr("noprop.training.checkpoint.os.replace", killed)
                with pytest.raises(Stopped):
                    save_generation(path, {"a": torch.tensor(9)}, {})
            found = newest(path, load_tensors)
            assert found is not None
            assert found.content[0]["a"].item() in (2, 9)


def test_another_version_is_refused(capsys, monkeypatch, whole, tmp_path):
    """A checkpoint of another version of the package, in training, joining and assembling."""
    monkeypatch.setattr(checkpoint_module, "__version__", "9.9")
    for argv in (["train", "--resume"], ["assemble"]):
        assert main([*argv, str(whole), "--quiet"]) == 1
        assert "was written by noprop 0.1.0, this is 9.9" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"written by noprop 0\.1\.0, this is 9\.9"):
        noprop.train_units(whole, ["block-1"])
