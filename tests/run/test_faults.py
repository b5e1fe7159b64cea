"""Faults made for real: kills, signals, damage and full disks; the weights are those without.

Every process here is one of the command line, and every fault is answered by starting it again.
"""

import contextlib
import errno
import functools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

import noprop
from noprop.cli import main
from noprop.config import RunConfig, replace, to_toml
from noprop.errors import DamagedError, RunError
from noprop.run.metrics import read_metrics
from noprop.run.units import group_folder
from noprop.tensor_files import load_tensors, save_tensors
from noprop.training import commits
from noprop.training.commits import LAST, PREVIOUS, latest, read_commit
from noprop.training.events import Damaged, Event, Progress
from tools import (
    TWO_BLOCKS,
    Clock,
    Command,
    Killed,
    alter,
    assert_same,
    commit_of,
    files_of,
    pause_in_commit,
    weights,
)

CONFIG = replace(
    RunConfig(),
    {
        **TWO_BLOCKS,
        "train.epochs": 2,
        "train.batch_size": 8,  # 45 updates a block and more
        "train.checkpoint_every": 0.0,
    },
)
# Long enough to be met in the middle, and saved by no clock.
SELDOM = {"train.checkpoint_every": 1e9}
LONG = replace(CONFIG, {"train.epochs": 6, **SELDOM})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run trained by one undisturbed process."""
    return noprop.train(CONFIG, folder=tmp_path_factory.mktemp("whole") / "r").folder


@pytest.fixture(scope="module")
def long_whole(tmp_path_factory) -> Path:
    """The longer run, trained by one undisturbed process."""
    folder = tmp_path_factory.mktemp("long") / "r"
    noprop.train_units(folder, ["block-1..readout"], LONG)
    return folder


def started(folder: Path, config: RunConfig, *argv: str, **options) -> Command:
    """``noprop train`` in a process, and a session, of its own."""
    file = folder.with_suffix(".toml")
    file.write_text(to_toml(config))
    command = ["train", "--config", str(file), "--quiet", "--run", str(folder), *argv]
    return Command(*command, **options)


def wait_for(condition: Callable[[], object], process: Command) -> None:
    """Look every millisecond, for as long as the process is there and does not hang."""
    deadline = time.monotonic() + 600
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    assert condition()


def events(folder: Path, kind: str) -> list[dict]:
    return [e for e in read_metrics(folder) if e["event"] == kind]


def stopped_at(folder: Path, position: int, every: float = 0.5) -> Path:
    """A run whose block-1 has a commit of an update, and one of the update before it.

    By the clock here each update takes a second. A resumed training saves every ``every`` seconds,
    because hundreds of checkpoints would take the time of ten trainings.
    """

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.position >= position:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:  # every update is reported
        patch.setattr("noprop.training.trainer.time", Clock())
        with contextlib.suppress(Killed):
            config = replace(CONFIG, {"train.checkpoint_every": every})
            noprop.train_units(folder, ["block-1"], config, emit=stop)
    return group_folder(folder, "block-1")


# -- damage --------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    """A kill between two renames leaves only the one before, where it is the manifest."""
    path.unlink()


@pytest.mark.parametrize("name", ["commit", "block-1"])
@pytest.mark.parametrize("damage", [cut, alter, emptied, removed])
def test_the_commit_before_takes_the_place_of_a_damaged_one(capsys, whole, tmp_path, damage, name):
    """One line says so; the weights in the end are the same."""
    folder = tmp_path / "r"
    place = stopped_at(folder, 10)
    assert [read_commit(place / n).position for n in (LAST, PREVIOUS)] == [10, 9]
    path = files_of(folder, "block-1")[name]
    if name == "commit" and damage is alter:  # a bit of the middle may be one of a name
        path.write_text(path.read_text().replace('"files"', '"fields"'))
    else:
        damage(path)
    assert main(["train", "--resume", str(folder), "--units", "block-1"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "resuming from" in line]
    assert len(said) == (damage is not removed or name != "commit")
    assert all(str(path) in line and "update 9 of" in line for line in said)
    assert_same(weights(whole, "block-1"), weights(folder, "block-1"))


def test_a_damaged_one_never_takes_the_place_of_a_good_one(tmp_path):
    """After resuming from the one before, both manifests are good from the first moment."""
    place = stopped_at(tmp_path / "r", 10)
    cut(files_of(tmp_path / "r", "block-1")["block-1"])

    def stop(event: Event) -> None:
        if isinstance(event, Damaged):
            raise Killed

    with pytest.raises(Killed):
        noprop.train_units(tmp_path / "r", ["block-1"], emit=stop)
    found = latest(place, files=True)
    assert found is not None
    assert (found.commit.position, found.damage) == (9, "")
    assert read_commit(place / PREVIOUS).position == 9


def test_when_both_are_damaged_the_error_says_what_to_delete(capsys, whole, tmp_path):
    place = stopped_at(tmp_path / "r", 10)
    for name in (LAST, PREVIOUS):
        cut(place / name)
    assert main(["train", "--resume", str(tmp_path / "r"), "--quiet"]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert f"and so is {PREVIOUS}; delete {place} to train it again" in text
    shutil.rmtree(place)
    noprop.resume(tmp_path / "r")
    assert_same(whole, tmp_path / "r")


def test_assemble_does_not_use_a_damaged_unit(capsys, whole, tmp_path):
    """One bit of a weight of a finished unit; resuming trains it again."""
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    (folder / "model.json").unlink()
    path = files_of(folder, "block-2")["block-2"]
    alter(path)
    assert main(["assemble", str(folder), "--quiet"]) == 1
    text = capsys.readouterr().err
    assert f"{path}: is damaged" in text
    assert f"train this part again with noprop train --resume {folder}" in text
    assert not (folder / "model.json").exists()
    noprop.resume(folder)
    assert_same(whole, folder)


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
def test_a_manifest_that_cannot_be_read_is_no_damage(monkeypatch, whole, tmp_path, name):
    """Else an error of the disk would replace the last commit by the one before."""
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    place = group_folder(folder, "block-1")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    open_regular = noprop.files.open_regular

    def refuse(path: Path):
        if path == place / name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_regular(path)

    monkeypatch.setattr(noprop.files, "open_regular", refuse)
    commit = commit_of(folder, "block-1") if name == PREVIOUS else None
    with pytest.raises(RunError, match=f"{name}: cannot be read: Permission denied"):
        latest(place) if commit is None else commits.delete_unnamed(place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_every_byte_of_a_file_of_tensors_counts(tmp_path):
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


def test_equal_content_is_an_equal_file(tmp_path):
    """So that runs can be compared with cmp; entries of a header have no order of their own."""
    for n in range(8):
        save_tensors(tmp_path / f"{n}", {"a": torch.arange(6.0)}, {"position": 3})
    assert len({(tmp_path / f"{n}").read_bytes() for n in range(8)}) == 1


@pytest.mark.parametrize("name", ["commit", "block-1", "shared"])
def test_every_byte_of_a_commit_counts(whole, tmp_path, name):
    """A byte altered anywhere in it is found, or changes nothing that is read."""
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    place, path = group_folder(folder, "block-1"), files_of(folder, "block-1")[name]
    (place / PREVIOUS).unlink()
    good, commit = path.read_bytes(), commit_of(folder, "block-1")
    refused, places = 0, range(0, len(good), max(1, len(good) // 100))
    for i in places:
        path.write_bytes(good[:i] + bytes([good[i] ^ 4]) + good[i + 1 :])
        try:
            found = latest(place, files=True)
            assert found is not None
            found.commit.check(place, commit.fingerprint)
        except RunError:
            refused += 1
            continue
        assert name == "commit"
        assert (found.commit.files, found.commit.fingerprint) == (commit.files, commit.fingerprint)
    assert refused == len(places) if name != "commit" else refused > 0.8 * len(places)


def test_another_version_is_refused(capsys, monkeypatch, whole):
    """A commit of another version of the package, in training, joining and assembling."""
    now = noprop.__version__
    monkeypatch.setattr(commits, "__version__", "9.9")
    for argv in (["train", "--resume"], ["assemble"]):
        assert main([*argv, str(whole), "--quiet"]) == 1
        text = capsys.readouterr().err
        assert f"was written by noprop {now}, this is 9.9; finish the run with that version" in text
    with pytest.raises(RunError, match=rf"written by noprop {now}, this is 9\.9"):
        noprop.train_units(whole, ["block-1"])


def test_a_worker_of_another_version_is_refused(monkeypatch, tmp_path):
    """The package was replaced between the start of a process and that of its worker."""
    monkeypatch.setattr("noprop.run.worker.__version__", "9.9")
    with pytest.raises(
        RunError, match=rf"worker: has noprop 9\.9, wanted {noprop.__version__} of its parent"
    ):
        noprop.train_units(tmp_path / "r", ["block-1"], CONFIG)


# -- kills and signals ---------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_minus_9_at_random_updates_of_one_unit(whole, tmp_path):
    """Twice, while the checkpoint of an update is written, in a process for block-2 alone."""
    folder, rng, positions = tmp_path / "r", random.Random(0), [0]
    for number in (rng.randint(2, 15) for _ in range(2)):
        mark = tmp_path / f"mark-{len(positions)}"
        pause = functools.partial(pause_in_commit, number, mark)
        process = started(folder, CONFIG, "--units", "block-2", before=pause)
        wait_for(mark.exists, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        positions.append(positions[-1] + number - 1)
        assert commit_of(folder, "block-2").position == positions[-1]
    assert not group_folder(folder, "block-1").exists()
    noprop.train_units(folder, ["block-1..readout"], overrides=SELDOM)
    assert_same(whole, folder)
    assert not [p for p in folder.rglob(".*") if not p.name.endswith(".lock")]


@pytest.mark.slow
def test_kill_minus_9_of_the_parent_of_two_workers(whole, tmp_path):
    """Resumed at once: a worker that still lives keeps its unit for a moment."""
    folder, config = tmp_path / "r", replace(CONFIG, {"train.workers": 2})
    process = started(folder, config)
    wait_for(lambda: list(folder.glob("units/block-*/commit.json")), process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    noprop.resume(folder, workers=1)
    assert_same(whole, folder)
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not [p for p in folder.rglob(".*") if not p.name.endswith(".lock")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_leaves_a_checkpoint_of_the_update_before(long_whole, tmp_path, workers):
    """Of a run that saves by no clock; all processes hear it, as a scheduler sends it."""
    folder, config = tmp_path / "r", replace(LONG, {"train.workers": workers})
    process = started(folder, config)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and events(folder, "epoch"), process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    text = process.communicate(timeout=30)[1]
    assert process.returncode == 143
    assert text == f"stopped; resume with: noprop train --resume {folder}\n"
    assert not psutil.wait_procs(children, timeout=10)[1]
    unit = events(folder, "epoch")[0]["unit"]
    commit = commit_of(folder, unit)
    assert 20 <= commit.position < commit.total
    noprop.train_units(folder, ["block-1..readout"], overrides={"train.workers": 1})
    assert_same(long_whole, folder)


def test_a_second_signal_is_not_waited_for(tmp_path, monkeypatch):
    """After the second Ctrl-C the update is not finished."""
    from noprop.training import signals

    before = signal.getsignal(signal.SIGTERM)  # Ray's own, where a test before this one began one
    with signals.answered_between_updates(), signals.signals_kept():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.stop_if_asked()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(signals.Terminated):
            signals.stop_if_asked()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_sigterm_at_once_is_the_first(monkeypatch):
    """A scheduler sends it to all processes, and torchrun to its own; later it is another."""
    from noprop.training import signals

    with signals.answered_between_updates():
        with signals.signals_kept():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(signals.Terminated):
            signals.stop_if_asked()
        signal.raise_signal(signal.SIGTERM)  # while the checkpoint is written
        monkeypatch.setattr(signals, "AGAIN", 0.0)
        with pytest.raises(signals.Terminated):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_two_processes_started_at_once_on_one_unit(long_whole, tmp_path):
    """They make one folder, and one of them trains."""
    folder = tmp_path / "r"
    both = [started(folder, LONG, "--units", "block-1") for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert 0 in [process.returncode for process in both]
    for process, text in zip(both, said, strict=True):
        if process.returncode:  # it did not wait for as long as the other took
            assert text.startswith(f"noprop: error: {folder}: another process is training block-1")
            assert text.count("\n") == 1
    assert len(events(folder, "trained")) == 1
    assert_same(weights(long_whole, "block-1"), weights(folder, "block-1"))


@pytest.mark.slow
def test_the_second_on_a_unit_leaves_and_the_first_goes_on(long_whole, tmp_path):
    """The first is paused while it holds its unit; its weights in the end are the same."""
    folder = tmp_path / "r"
    first = started(folder, LONG, "--units", "block-1")
    wait_for(lambda: (folder / "metrics.jsonl").exists() and events(folder, "epoch"), first)
    first.send_signal(signal.SIGSTOP)
    try:
        second = started(folder, LONG, "--units", "block-1")
        text = second.communicate(timeout=60)[1]
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert text.startswith(f"noprop: error: {folder}: another process is training block-1, nothing")
    assert text.count("\n") == 1
    assert first.communicate(timeout=60)[1] == ""
    assert first.returncode == 0
    assert_same(weights(long_whole, "block-1"), weights(folder, "block-1"))


# -- full disks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["write", "fsync"])
def test_a_full_disk_ends_training_with_one_line(capsys, monkeypatch, whole, tmp_path, place):
    """While the checkpoint of update 14 is written; training resumes from that of 13."""
    folder = tmp_path / "r"
    stopped_at(folder, 10, every=0.0)
    writes = []

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(file, mode="r", **options):
        made = open(file, mode, **options)
        if "x" in mode and ".commit.json." in str(file):
            writes.append(file)
            if len(writes) >= 4 and place == "write":
                made.write(b"half of it")
                return Half(made, full)
        return made

    def synced(descriptor):
        if len(writes) >= 4:
            full()

    with monkeypatch.context() as patch:
        patch.setattr("noprop.files.open", opened, raising=False)
        if place == "fsync":
            patch.setattr("noprop.files.os.fsync", synced)
        assert main(["train", "--resume", str(folder), "--quiet"]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert f"{folder}/units/block-1/" in text
    assert "cannot be written: No space left on device; the last good checkpoint is kept" in text
    assert commit_of(folder, "block-1").position == 13
    assert not list(folder.rglob(".*.tmp"))
    noprop.train_units(folder, ["block-1..readout"], overrides=SELDOM)
    assert_same(whole, folder)


class Half:
    """A file with no room for more."""

    def __init__(self, file, full):
        self.file, self.write = file, full

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_limit_on_the_size_of_files_is_met_as_a_full_disk(whole, tmp_path):
    """For real: the system cuts the write short."""
    folder = tmp_path / "r"
    place = stopped_at(folder, 10)
    limit = files_of(folder, "block-1")["block-1"].stat().st_size - 1000

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = started(folder, CONFIG, "--units", "block-1", before=limited)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert text == (
        f"noprop: error: {place}/block-1.11.safetensors: cannot be written: "
        f"{os.strerror(errno.EFBIG)}; the last good checkpoint is kept\n"
    )
    assert commit_of(folder, "block-1").position == 10
    assert not list(folder.rglob(".*.tmp"))
    noprop.train_units(folder, ["block-1..readout"], overrides=SELDOM)
    assert_same(whole, folder)
