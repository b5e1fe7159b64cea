"""Checkpoints at a URL: whole at any moment, gone on from anywhere, brought into the run."""

import shutil
from pathlib import Path

import pytest
import torch

from noprop.config import replace
from noprop.errors import RunError
from noprop.run.groups import checkpoint_path
from noprop.run.ray_engine import RayEngine
from noprop.run.storage import RunStorage, UnitStorage
from noprop.training.checkpoint import load_tensors, save_tensors
from noprop.training.events import Epoch, Event, Progress
from noprop.training.generations import previous_of, save_generation
from noprop.training.offload import read_checkpoint
from ray_runs import CONFIG, LEARNED, LONG, Killer, assert_same, told, trained

# -- without Ray ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path) -> UnitStorage:
    return RunStorage(f"file://{tmp_path}/there/run").unit("block-1")


def saved(folder: Path, position: int, waiting: dict[str, int] | None = None) -> None:
    """A checkpoint of an update, and the files that it lists."""
    about = {"position": position} | ({"waiting": waiting} if waiting else {})
    for name, at in (waiting or {}).items():
        path = folder / "waiting" / f"{name}.{at}.safetensors"
        if not path.exists():
            save_tensors(path, {"w": torch.tensor(at)}, {})
    tensors = {"w": torch.tensor(position)}
    save_generation(folder / "checkpoint.safetensors", tensors, about)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_two_checkpoints_and_their_files_are_kept(place, tmp_path):
    """And brought into another folder, in which training finds them as if it had written them."""
    here, there = tmp_path / "here", tmp_path / "there" / "run" / "units" / "block-1"
    assert place.position() is None
    for position, waiting in [(3, {"a": 1}), (5, {"a": 4, "b": 5}), (9, {"a": 8, "b": 5})]:
        saved(here, position, waiting)
        place.send(here)
        assert place.position() == position
    assert names(there) == [
        "checkpoint.5.safetensors",
        "checkpoint.9.safetensors",
        *(f"waiting/{n}.safetensors" for n in ("a.4", "a.8", "b.5")),
    ]
    assert place.fetch(tmp_path / "other")
    for path, position in {"checkpoint": 9, "checkpoint.previous": 5}.items():
        _, about = read_checkpoint(tmp_path / "other" / f"{path}.safetensors")
        assert about["position"] == position
    assert not place.fetch(tmp_path / "other")  # it is as far


def test_one_that_is_behind_takes_nothing_from_one_that_is_ahead(place, tmp_path):
    """A worker that was taken for lost still sends; what the other needs stays."""
    ahead, behind = tmp_path / "ahead", tmp_path / "behind"
    for position in (8, 9):
        saved(ahead, position, {"a": position})
        place.send(ahead)
    saved(behind, 4, {"a": 2})
    place.send(behind)
    assert place.position() == 9
    place.fetch(tmp_path / "other")
    assert read_checkpoint(tmp_path / "other" / "checkpoint.safetensors")[1]["position"] == 9
    previous = previous_of(tmp_path / "other" / "checkpoint.safetensors")
    assert read_checkpoint(previous)[1]["position"] == 8


def test_a_damaged_one_is_found_out_by_whoever_goes_on(place, tmp_path):
    for position in (1, 2):
        saved(tmp_path / "here", position)
        place.send(tmp_path / "here")
    last = tmp_path / "there" / "run" / "units" / "block-1" / "checkpoint.2.safetensors"
    last.write_bytes(last.read_bytes()[:-3])
    place.fetch(tmp_path / "other")
    previous = previous_of(tmp_path / "other" / "checkpoint.safetensors")
    assert load_tensors(previous)[1]["position"] == 1


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"^storage: file://.*/file/run: ") as error:
        RunStorage(f"file://{tmp_path}/file/run").begin(b"")
    assert "\n" not in str(error.value)


# -- with Ray ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, LEARNED | {"train.offload": True}], ids=["", "offload"])
def test_kill_minus_9_in_the_middle_of_sending(cluster, whole, tmp_path, changes):
    """Of one unit; it goes on elsewhere from what is there whole."""
    config = replace(CONFIG, changes)
    group = "all" if changes else "block-1"
    unit = tmp_path / "there" / "r" / "units" / group
    killer = Killer(unit, ".checkpoint.*.tmp", 1, "checkpoint.*.safetensors")
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

    with pytest.raises(Stopped):
        trained(tmp_path / "r", LONG, RayEngine(storage=storage), emit=stop, groups=["block-1"])
    shutil.rmtree(tmp_path / "r")
    sent = RunStorage(f"{storage}/r")
    stopped = sent.unit("block-1").position()
    assert stopped
    assert stopped >= 20
    folder = trained(tmp_path / "r", LONG, groups=["block-2"])
    seen: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            assert event.unit == "block-1"
            seen.append(event.position)

    engine = RayEngine(storage=storage)
    trained(folder, LONG, engine, emit=listen, groups=["block-1", "block-2"])
    assert min(seen) > stopped
    trained(folder, LONG, groups=["readout"])
    assert_same(whole(LONG), folder, LONG)
    assert checkpoint_path(folder, "block-1").exists()
