"""Checkpoints at a URL: whole at any moment, resumed from anywhere, copied into the run."""

import shutil
from pathlib import Path

import pytest
import torch

from noprop.config import replace
from noprop.errors import RunError
from noprop.run.ray_engine import RayEngine
from noprop.run.storage import RunStorage, UnitStorage
from noprop.run.units import group_folder
from noprop.training.commits import (
    LAST,
    PREVIOUS,
    Commit,
    latest,
    read_commit,
    write_commit,
    write_part,
)
from noprop.training.events import Epoch, Event, Progress
from ray_runs import CONFIG, LEARNED, LONG, Killer, assert_same, told, trained

# -- without Ray ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path) -> UnitStorage:
    return RunStorage(f"file://{tmp_path}/there/run").unit("block-1")


def saved(folder: Path, position: int, parts: dict[str, int] | None = None) -> None:
    """A commit of an update, whose parts were last written at these updates."""
    parts = {"shared": position} | (parts or {})
    files = {
        name: write_part(folder, name, at, {"w": torch.tensor(at)}) for name, at in parts.items()
    }
    write_commit(folder, Commit(position, 100, 1.0, files))


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_two_commits_and_their_files_are_kept(place, tmp_path):
    """And copied into another folder, in which training finds them as if it had written them."""
    here, there = tmp_path / "here", tmp_path / "there" / "run" / "units" / "block-1"
    assert place.position() is None
    for position, parts in [(3, {"a": 1}), (5, {"a": 4, "b": 5}), (9, {"a": 8, "b": 5})]:
        saved(here, position, parts)
        place.send(here)
        assert place.position() == position
    parts = [f"{n}.safetensors" for n in ("a.4", "a.8", "b.5", "shared.5", "shared.9")]
    assert names(there) == sorted(["commit.5.json", "commit.9.json", *parts])
    assert place.fetch(tmp_path / "other")
    assert names(tmp_path / "other") == sorted([LAST, PREVIOUS, *parts])
    found = latest(tmp_path / "other", files=True)
    assert found
    assert found.commit.position == 9
    assert read_commit(tmp_path / "other" / PREVIOUS).position == 5
    assert not place.fetch(tmp_path / "other")  # it is as far


def test_one_that_is_behind_takes_nothing_from_one_that_is_ahead(place, tmp_path):
    """A worker that was given up as lost still sends; what the other needs stays."""
    ahead, behind = tmp_path / "ahead", tmp_path / "behind"
    for position in (8, 9):
        saved(ahead, position, {"a": position})
        place.send(ahead)
    saved(behind, 4, {"a": 2})
    place.send(behind)
    assert place.position() == 9
    place.fetch(tmp_path / "other")
    found = latest(tmp_path / "other", files=True)
    assert found
    assert found.commit.position == 9
    assert read_commit(tmp_path / "other" / PREVIOUS).position == 8


def test_what_another_is_sending_is_not_deleted(place, tmp_path):
    """Files of a later commit, whose manifest does not exist yet: both workers may still send."""
    here, there = tmp_path / "here", tmp_path / "there" / "run" / "units" / "block-1"
    saved(here, 3)
    place.send(here)
    later = ["shared.7.safetensors", ".commit.7.json.12-ab.tmp"]
    for name in [*later, ".shared.4.safetensors.11-cd.tmp"]:
        (there / name).touch()
    saved(here, 5)
    place.send(here)
    parts = ["shared.3.safetensors", "shared.5.safetensors"]
    assert names(there) == sorted(["commit.3.json", "commit.5.json", *parts, *later])


@pytest.mark.parametrize("name", ["commit.2.json", "shared.2.safetensors"])
def test_a_damaged_one_is_recognised_when_it_is_resumed(place, tmp_path, name):
    for position in (1, 2):
        saved(tmp_path / "here", position)
        place.send(tmp_path / "here")
    last = tmp_path / "there" / "run" / "units" / "block-1" / name
    last.write_bytes(last.read_bytes()[:-3])
    place.fetch(tmp_path / "other")
    found = latest(tmp_path / "other", files=True)
    assert found
    assert found.commit.position == 1
    assert "is damaged" in found.damage


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"^storage: file://.*/file/run: ") as error:
        RunStorage(f"file://{tmp_path}/file/run").begin(b"")
    assert "\n" not in str(error.value)


# -- with Ray ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, LEARNED | {"train.offload": True}], ids=["", "offload"])
def test_kill_minus_9_in_the_middle_of_sending(cluster, whole, tmp_path, changes):
    """Only the unit whose worker is killed resumes, from its last whole checkpoint."""
    config = replace(CONFIG, changes)
    group = "all" if changes else "block-1"
    unit = tmp_path / "there" / "r" / "units" / group
    killer = Killer(unit, ".*.tmp", 1, "commit.*.json")
    folder = trained(tmp_path / "r", config, RayEngine(storage=f"file://{tmp_path}/there"))
    killer.over = True
    assert len(killer.left) == 1
    assert {e["group"] for e in told(folder, "restarted")} == {group}
    assert_same(whole(config), folder, config)
    assert not list(unit.rglob(".*.tmp"))
    assert (unit.parent.parent / "config.toml").read_bytes() == (
        folder / "config.toml"
    ).read_bytes()


class Stopped(BaseException):
    """As abrupt as a signal."""


def test_another_driver_goes_on_from_the_storage_and_from_its_folder(cluster, whole, tmp_path):
    """The first is stopped and its folder lost; the second has block-2 trained by itself."""
    storage = f"file://{tmp_path}/there"

    def stop(event: Event) -> None:
        if isinstance(event, Epoch):
            raise Stopped

    config = replace(LONG, {"train.checkpoint_every": 0.1})
    with pytest.raises(Stopped):
        trained(tmp_path / "r", config, RayEngine(storage=storage), emit=stop, units=["block-1"])
    shutil.rmtree(tmp_path / "r")
    sent = RunStorage(f"{storage}/r")
    stopped = sent.unit("block-1").position()
    assert stopped
    assert stopped >= 20
    folder = trained(tmp_path / "r", config, units=["block-2"])
    seen: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            assert event.unit == "block-1"
            seen.append(event.position)

    engine = RayEngine(storage=storage)
    trained(folder, config, engine, emit=listen, units=["block-1", "block-2"])
    assert min(seen) > stopped
    trained(folder, config, units=["readout"])
    assert_same(whole(LONG), folder, LONG)
    assert (group_folder(folder, "block-1") / LAST).exists()
