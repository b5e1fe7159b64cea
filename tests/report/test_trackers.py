"""What trackers receive of a run, read back from the files that they write."""

import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import noprop
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError, RunError
from noprop.files import check_folder
from noprop.report.pictures import Picture
from noprop.report.trackers import TRACKERS, Tracking, check_trackers, tracked
from noprop.run.metrics import read_metrics
from noprop.training.events import Epoch, Evaluated, Event, Progress, print_nothing
from tools import TWO_BLOCKS

CONFIG = replace(RunConfig(), {"train.batch_size": 100})
EPOCH = Epoch("block-1", 2, 0.5, {"denoising": 0.25}, 0.75, lr=1e-3)


def needs(name: str) -> None:
    """Skip a test where the package of a tracker is not installed."""
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'noprop[{name}]'")


def red_pixel() -> bytes:
    """A picture, as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "png")
    return file.getvalue()


class Notebook:
    """A tracker that keeps what it receives."""

    def __init__(self, folder: Path, config: RunConfig, identifier: str):
        self.identifier = identifier or "first"
        self.points: list[tuple[str, str, float, int]] = []
        self.pictures: list[str] = []
        self.closed = 0

    def numbers(self, axis: str, values: Any, step: int) -> None:
        self.points += [(axis, name, value, step) for name, value in values.items()]

    def picture(self, picture: Picture) -> None:
        self.pictures.append(picture.name)

    def close(self) -> None:
        self.closed += 1


def test_an_epoch_is_a_point_of_each_curve(tmp_path):
    book, events = Notebook(tmp_path, CONFIG, ""), list[Event]()
    Tracking({"book": book}, tmp_path, CONFIG, events.append)(EPOCH)
    assert events == [EPOCH]
    assert set(book.points) == {
        ("epoch/block-1", "loss/block-1", 0.5, 2),
        ("epoch/block-1", "validation_loss/block-1", 0.75, 2),
        ("epoch/block-1", "denoising/block-1", 0.25, 2),
        ("epoch/block-1", "lr/block-1", 1e-3, 2),
    }


def test_the_speed_counts_the_images_of_all_groups(tmp_path, monkeypatch):
    """Block 1 makes 30 updates of 100 images and block 2 makes 10, in 2 seconds; what came before
    the first report of a resumed group does not count."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    book = Notebook(tmp_path, CONFIG, "")
    tracking = Tracking({"book": book}, tmp_path, CONFIG, print_nothing)
    now[0] = 150.0
    for unit, work in (("block-1", 500), ("block-2", 10), ("block-1", 530), ("block-2", 20)):
        tracking(Progress(unit, 1, work, 1000, work, 1000, 0.1))
    now[0] = 152.0
    tracking(EPOCH)
    assert ("epochs", "images_per_second", 2000.0, 1) in book.points
    tracking(Progress("block-1", 1, 540, 1000, 540, 1000, 0.1))
    now[0] = 156.0
    tracking(EPOCH)  # 10 updates in the 4 seconds since the last one
    assert ("epochs", "images_per_second", 250.0, 2) in book.points


def test_an_evaluation_is_a_point_at_the_end(tmp_path):
    book = Notebook(tmp_path, CONFIG, "")
    tracking = Tracking({"book": book}, tmp_path, CONFIG, print_nothing)
    tracking(EPOCH)
    modes = {"single": {"accuracy": 90.0, "log_loss": 0.5}, "mean": {"accuracy": 95.0}}
    tracking(Evaluated({"modes": modes, "training": {"seconds": 7.0}}))
    assert set(book.points[-4:]) == {
        ("epochs", "accuracy/single", 90.0, 1),
        ("epochs", "log_loss/single", 0.5, 1),
        ("epochs", "accuracy/mean", 95.0, 1),
        ("epochs", "seconds", 7.0, 1),
    }


def test_a_resumed_run_continues_the_count_of_its_epochs(trained_run):
    folder = trained_run("digits-dt")
    before = sum(event["event"] == "epoch" for event in read_metrics(folder))
    assert before > 1
    book = Notebook(folder, CONFIG, "")
    tracking = Tracking({"book": book}, folder, CONFIG, print_nothing)
    tracking(EPOCH)
    tracking(Evaluated({"modes": {"single": {"accuracy": 90.0}}}))
    assert book.points[-1] == ("epochs", "accuracy/single", 90.0, before + 1)


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, capsys):
    class Broken(Notebook):
        def numbers(self, axis: str, values: Any, step: int) -> None:
            raise ConnectionError("the server\nis away")

    book = Notebook(tmp_path, CONFIG, "")
    trackers = {"broken": Broken(tmp_path, CONFIG, ""), "book": book}
    tracking = Tracking(trackers, tmp_path, CONFIG, print_nothing)
    tracking(EPOCH)
    tracking(EPOCH)
    assert capsys.readouterr().err.count("broken failed and is left out: the server is away") == 1
    assert len(book.points) == 8


def test_a_resumed_run_has_the_name_that_it_had(tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", Notebook)
    for expected in ("first", "renamed"):
        with tracked(["wandb", "wandb"], tmp_path, CONFIG, print_nothing) as tracking:
            (book,) = tracking.trackers.values()
            assert book.identifier == expected
        assert book.closed == 1  # pyright: ignore[reportAttributeAccessIssue]
        (tmp_path / "trackers.json").write_text('{"wandb": "renamed"}')
    (tmp_path / "trackers.json").write_text('{"wandb": "../../elsewhere"}')
    with (
        pytest.raises(RunError, match="is damaged"),
        tracked(["wandb"], tmp_path, CONFIG, print_nothing),
    ):
        pass


def test_what_a_tracker_prints_is_no_output_of_the_command(tmp_path, monkeypatch, capsys):
    class Loud(Notebook):
        def __init__(self, *arguments: Any):
            print("begins")
            super().__init__(*arguments)

        def numbers(self, axis: str, values: Any, step: int) -> None:
            print("logs")

        def close(self) -> None:
            print("ends")

    monkeypatch.setitem(TRACKERS, "wandb", Loud)
    with tracked(["wandb"], tmp_path, CONFIG, print_nothing) as tracking:
        tracking(EPOCH)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "begins\nlogs\nends\n")


def test_a_run_without_trackers_is_left_alone(tmp_path):
    """A file in the folder starts none: only the user's own words do."""
    (tmp_path / "trackers.json").write_text('{"wandb": "x"}')
    with tracked([], tmp_path, CONFIG, print_nothing) as tracking:
        assert tracking.trackers == {}
    assert (tmp_path / "trackers.json").read_text() == '{"wandb": "x"}'


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_names_its_extra(monkeypatch, name, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--track", name]) == 1
    assert f"pip install 'noprop[{name}]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="wanted some of tensorboard, wandb"):
        check_trackers(["tensorbord"])


# -- the files of the real ones --------------------------------------------------------------------


def read_tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return read


@pytest.mark.slow
def test_event_files_of_tensorboard_hold_a_run_of_two_workers(tmp_path):
    """Losses are those of metrics.jsonl, also those of a worker process; a resumed run adds."""
    needs("tensorboard")
    folder = tmp_path / "run"
    how = {"overrides": TWO_BLOCKS, "folder": folder, "track": ["tensorboard"]}
    losses = {}

    def keep(event: Event) -> None:
        if isinstance(event, Epoch):
            losses[event.unit, event.epoch] = event.loss

    model = noprop.train("digits-dt", epochs=2, workers=2, emit=keep, **how)
    read = read_tensorboard(folder / "tensorboard")
    found = {
        (tag.partition("/")[2], point.step): point.value
        for tag in read.Tags()["scalars"]
        for point in read.Scalars(tag)
        if tag.startswith("loss/")
    }
    assert found == pytest.approx(losses)
    assert len(found) >= 4
    results = model.results
    assert results
    (accuracy,) = read.Scalars(f"accuracy/{results['default']}")
    assert accuracy.value == pytest.approx(results["accuracy"])
    assert b'name = "dt"' in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert set(read.Tags()["images"]) >= {"curves", "chain"}

    noprop.resume(folder, epochs=3, workers=1, track=["tensorboard"])
    read = read_tensorboard(folder / "tensorboard")
    assert [point.step for point in read.Scalars("loss/block-1")] == [1, 2, 3]
    assert [point.step for point in read.Scalars("seconds")] == [len(losses), len(losses) * 3 // 2]


def use(name: str, folder: Path, step: int) -> str:
    """Send a point and a picture to a real tracker, and return the run's name there."""
    folder.mkdir(exist_ok=True)
    with tracked([name], folder, CONFIG, print_nothing) as tracking:
        print("the answer of the command")
        (tracker,) = tracking.trackers.values()
        tracker.numbers("epoch/block-1", {"loss/block-1": 1 / step}, step)
        tracker.picture(Picture("curves", red_pixel()))
        identifier = tracker.identifier
        assert tracking.trackers
    return identifier


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its packages about each other
def test_mlflow_continues_its_run(tmp_path, monkeypatch):
    needs("mlflow")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    first, second = (use("mlflow", tmp_path / "run", step) for step in (1, 2))
    assert first == second
    client = MlflowClient()
    points = client.get_metric_history(first, "loss/block-1")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]
    run = client.get_run(first)
    assert run.data.params["train.batch_size"] == "100"
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(first)] == ["curves.png"]


@pytest.mark.slow
def test_wandb_continues_its_run_offline(tmp_path, monkeypatch):
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    first, second = (use("wandb", tmp_path / "run", step) for step in (1, 2))
    assert first == second
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{first}.wandb"] * len(files)
    content = b"".join(file.read_bytes() for file in files)
    assert b"loss/block-1" in content
    assert b"batch_size" in content
    check_folder(tmp_path / "run")  # its links are not in the run folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_continues_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at the import
    needs("trackio")
    first, second = (use("trackio", tmp_path / "run", step) for step in (1, 2))
    assert first == second
    assert capsys.readouterr().out == "the answer of the command\n" * 2
    assert list((tmp_path / "trackio").rglob("*.db"))
