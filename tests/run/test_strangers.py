"""A run from a stranger: nothing that it holds has a command write or delete outside of it.

A copy of a finished run lies beside a folder of canaries. Each attack is planted in the copy, and
each command that takes a run is called; it must say what is wrong in one line, and leave the
canaries and the copy as they are.
"""

import json
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import noprop
from mistakes import line_of_error
from noprop.cli import main
from noprop.config import replace
from noprop.errors import RunError, TrainingError
from noprop.files import make_own_folder, write_whole
from noprop.recipes import find_recipe
from noprop.run.folder import make_free_folder
from noprop.run.locks import hold
from noprop.run.metrics import append_line, read_metrics
from noprop.run.storage import RunStorage, UnitStorage
from noprop.training.events import Created

COMMANDS = {
    "resume": "train --resume run --quiet",
    "units": "train --resume run --units block-1 --quiet",
    "join": "train --run run --epochs 1 --num-blocks 2 --train-size 200 --units block-1 --quiet",
    "assemble": "assemble run --quiet",
    "evaluate": "evaluate run",
    "predict": "predict run x.npy",
    "plot": "plot run",
}
# What is replaced by a link, and where it leads: files, folders, and what is absent beyond.
LINKS = {
    ".processes": "folder",
    "units": "folder",
    "units/block-1": "folder",
    "units/block-1/block-1.1.safetensors": "file",
    "units/block-1/.lock": "file",
    "units/block-1/commit.json": "file",
    "units/block-1/previous.json": "absent",
    "plots": "folder",
    "scores": "folder",
    "metrics.jsonl": "file",
    "config.toml": "file",
    "environment.json": "file",
    "embedding.safetensors": "absent",
    "evaluation.json": "absent",
    "model.json": "file",
    "model.safetensors": "file",
    "predictions.safetensors": "file",
    "report.html": "file",
    ".lock": "absent",
    ".assembly.lock": "file",
    "notes": "folder",
}


@pytest.fixture
def place(monkeypatch, tmp_path, trained_run) -> Path:
    """A folder with a copy of a run, and canaries next to it."""
    shutil.copytree(trained_run("digits-dt"), tmp_path / "run")
    (tmp_path / "canary" / "folder").mkdir(parents=True)
    (tmp_path / "canary" / "file").write_text("a canary\n")
    (tmp_path / "canary" / "folder" / "9.safetensors").write_text("another\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, object]:
    """Everything in a folder, by name: links as what they hold, files as their content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else path.is_dir()
    return found


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", LINKS)
def test_no_command_follows_a_link_out_of_a_run(capfd, place, name):
    link = place / "run" / name
    remove(link)
    link.symlink_to(Path(os.path.relpath(place / "canary" / LINKS[name], link.parent)))
    before = tree(place)
    for command in COMMANDS.values():
        text = line_of_error(capfd, *command.split())
        assert f"run/{name}: is a symbolic link" in text
        assert tree(place) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.json", "units/block-1/.lock", "x"])
def test_no_command_waits_at_a_pipe(capfd, place, name):
    remove(place / "run" / name)
    os.mkfifo(place / "run" / name)
    for command in COMMANDS.values():
        text = line_of_error(capfd, *command.split())
        assert f"run/{name}: is neither a file nor a folder" in text


def test_a_new_run_is_not_made_over_links(capfd, place):
    """The folder counts as empty, for a lock is all that it holds."""
    (place / "new").mkdir()
    (place / "new" / ".lock").symlink_to("../canary/absent")
    before = tree(place)
    for option in ("", " --units block-1"):
        text = line_of_error(capfd, *f"train --run new{option} --quiet".split())
        assert "new/.lock: is a symbolic link" in text
        assert tree(place) == before


def test_the_run_itself_may_be_a_link(place):
    (place / "mine").symlink_to("run")
    assert main(["evaluate", "mine"]) == 0
    assert main(["assemble", "mine", "--quiet"]) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", ".assembly.lock"])
def test_what_is_written_in_place_is_no_hard_link(capfd, place, name):
    """Every other file is replaced as a whole, so that a hard link keeps its content."""
    remove(place / "run" / name)
    os.link(place / "canary" / "file", place / "run" / name)
    before = tree(place / "canary")
    text = line_of_error(capfd, "train", "--resume", "run", "--quiet")
    assert f"run/{name}: is a hard link" in text
    assert tree(place / "canary") == before


def test_a_replaced_file_leaves_its_hard_links_alone(place):
    for name in ("evaluation.json", "model.json", "model.safetensors"):
        os.link(place / "run" / name, place / "canary" / name)
    before = tree(place / "canary")
    with (place / "run" / "config.toml").open("r+") as file:
        text = file.read().replace("runs = 2", "runs = 1")
        file.seek(0)
        file.write(text)
        file.truncate()
    assert main(["assemble", "run", "--quiet"]) == 0
    assert tree(place / "canary") == before
    assert (place / "run" / "evaluation.json").read_bytes() != before["evaluation.json"]


def test_no_lock_or_metrics_is_written_through_a_link(place):
    """Even of a link that came after the folder was walked."""
    before = tree(place / "canary")
    for name, goal in (("metrics.jsonl", "file"), ("m", "absent")):
        remove(place / "run" / name)
        (place / "run" / name).symlink_to(place / "canary" / goal)
        with pytest.raises(RunError, match="is not a regular file"):
            append_line(place / "run" / name, b"{}\n")
        with pytest.raises(RunError, match="is not a regular file"), hold(place / "run" / name, ""):
            pass
    assert tree(place / "canary") == before


def test_a_temporary_file_is_never_a_link(place):
    (place / "run" / f".model.json.{os.getpid()}.tmp").symlink_to(place / "canary" / "file")
    before = tree(place / "canary")
    write_whole(place / "run" / "model.json", b"{}")
    assert tree(place / "canary") == before
    assert (place / "run" / "model.json").read_bytes() == b"{}"


CLIMBING = ["../x", "..", "/etc/x", "a/b", "../../../canary/folder/9", "", "block-1.5", "block-1\n"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("where", ["part", "file"])
def test_a_named_file_is_no_path(capfd, place, name, where):
    """What a manifest names is read, deleted, and copied from a storage by name."""
    there = place / "there" / "units" / "block-1"
    files = {name if where == "part" else "block-1": [f"{name}.9.safetensors", "0" * 64]}
    about = {"position": 9, "total": 9, "seconds": 1.0, "version": noprop.__version__}
    content = json.dumps({**about, "fingerprint": "", "files": files})
    for folder in (there, place / "run" / "units" / "block-1"):
        folder.mkdir(parents=True, exist_ok=True)
        for manifest in ("commit.9.json", "commit.json", "previous.json"):
            (folder / manifest).write_text(content)
    before = tree(place / "canary")
    storage = UnitStorage(f"file://{there}")
    storage.fetch(place / "here")
    storage.send(place / "here")
    assert not [path for path in tree(place / "here") if not path.endswith(".json")]
    text = line_of_error(capfd, *"train --resume run --quiet".split())
    assert (
        "files must be those of units" in text or "must be block-1.<position>.safetensors" in text
    )
    assert tree(place / "canary") == before


@pytest.mark.parametrize("name", ["block-1.9.safetensors", "commit.9.json"])
def test_a_storage_with_links_is_refused(place, name):
    storage = RunStorage(f"file://{place}/there/run")
    storage.begin(b"")
    there = place / "there" / "run" / "units" / "block-1"
    there.mkdir(parents=True)
    (there / name).symlink_to(place / "canary" / "folder")
    before = tree(place)
    unit = storage.unit("block-1")
    here = place / "run" / "units" / "block-1"
    for call in (unit.position, lambda: unit.fetch(here), lambda: unit.send(here)):
        with pytest.raises(RunError, match=f"block-1/{name}: is a symbolic link"):
            call()
    with pytest.raises(RunError, match=f"block-1/{name}: is a symbolic link"):
        storage.begin(b"")
    assert tree(place) == before


def test_a_run_that_is_a_link_in_its_storage_is_refused(place):
    """Its user names the storage, and the run's name is looked up in it."""
    (place / "there").mkdir()
    (place / "there" / "run").symlink_to(place / "canary")
    before = tree(place)
    with pytest.raises(RunError, match="there/run: is a symbolic link"):
        RunStorage(f"file://{place}/there/run").begin(b"")
    assert tree(place) == before


def test_a_folder_of_another_is_not_worked_in(place, monkeypatch):
    """Such as one that another user made sooner, under the name that ours has in /tmp."""
    make_own_folder(place / "own")
    make_own_folder(place / "own")
    assert (place / "own").stat().st_mode & 0o777 == 0o700
    (place / "link").symlink_to("canary")
    for name in ("link", "canary/file"):
        with pytest.raises(RunError, match=f"{name}: "):
            make_own_folder(place / name)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(RunError, match="own: is a link, or a folder of another user"):
        make_own_folder(place / "own")


# -- what is no attack but an accident -------------------------------------------------------------


def test_a_foreign_line_of_metrics_is_left_out(place):
    """It is no object, no event, no text, nested without end, or cut short."""
    path = place / "run" / "metrics.jsonl"
    before = read_metrics(place / "run")
    lines = ["7", "null", "[]", '{"a": 1}', '{"event": 3}', "[" * 100_000, '{"event": "trai', ""]
    lines += ['{"event": "epoch", "loss": "x"}', '{"event": "trained"}']
    content = "\n".join(lines).encode() + b'\n\xff\xfe{"event": "epoch"}\n'
    path.write_bytes(content + path.read_bytes())
    assert read_metrics(place / "run")[2:] == before
    for command in ("assemble run --quiet", "plot run"):
        assert main(command.split()) == 0


def test_a_line_of_metrics_without_end_takes_no_memory(place):
    path = place / "run" / "metrics.jsonl"
    before = read_metrics(place / "run")
    with path.open("ab") as file:
        file.truncate(1 << 26)
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"event": "last"}\n')
    tracemalloc.start()
    try:
        assert read_metrics(place / "run") == [*before, {"event": "last"}]
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_copy_of_the_data_is_not_left_in_a_finished_run(place):
    """A process that was killed has left it; one that lives keeps its own."""
    killed, living = (place / "run" / ".processes" / name for name in ("a", "b"))
    for folder in (killed, living):
        folder.mkdir(parents=True)
        (folder / "data.safetensors").write_bytes(b"images")
    with hold(living / ".lock", ""):
        assert main(["train", "--resume", "run", "--quiet"]) == 0
        assert not killed.exists()
        assert living.exists()
    assert main(["assemble", "run", "--quiet"]) == 0
    assert not (place / "run" / ".processes").exists()


def test_new_runs_started_at_once_have_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_free_folder("digits-dt", tmp_path), range(40)))
    assert sorted(p.name for p in made) == sorted(
        ["digits-dt", *(f"digits-dt-{n}" for n in range(2, 41))]
    )


def test_a_new_run_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = replace(find_recipe("digits-dt"), {"data.train_size": 200, "train.epochs": 1})
    config = replace(config, {"method.num_blocks": 2, "train.workers": 1, "evaluation.runs": 1})
    events = []
    folders = [noprop.train(config, emit=events.append).folder for _ in range(2)]
    assert [str(folder) for folder in folders] == ["runs/digits-dt", "runs/digits-dt-2"]
    assert [e.folder for e in events if isinstance(e, Created)] == list(map(str, folders))


def test_predictions_that_are_not_finite_are_an_error(trained_run):
    """Of weights that are finite, and too great: they are written, and never a prediction is."""
    model = noprop.load(trained_run("digits-backprop"))
    for parameter in model.method.parameters():
        parameter.data.fill_(1e30)
    with pytest.raises(TrainingError, match="the predictions of the trained model are not finite"):
        model.predict(torch.ones(3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TrainingError, match="the predictions of the trained model are not finite"):
        model.evaluate()
