"""Trackers of experiments: a run's events as curves of TensorBoard, wandb, trackio or MLflow.

A tracker is a small class that takes numbers and pictures. :class:`Tracking` turns events into
these, once for all of them, in the process that receives the events. A resumed run continues what
it began: ``trackers.json`` of the run folder has the names that the trackers gave to it.
"""

import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from noprop.config import RunConfig, to_mapping, to_toml
from noprop.data import Examples
from noprop.errors import ConfigError, RunError
from noprop.files import read_object, write_whole
from noprop.model import Model
from noprop.report.pictures import Picture
from noprop.report.plots import draw_run
from noprop.run.metrics import read_metrics
from noprop.terminal import tell
from noprop.training.events import Emit, Epoch, Evaluated, Event, Progress

__all__ = ["TRACKERS", "Tracker", "Tracking", "check_trackers", "tracked"]

PROJECT = "noprop"  # unless an environment variable of the tracker names another
IDENTIFIER = re.compile(r"[\w.-]{1,128}")


@runtime_checkable
class Tracker(Protocol):
    """What a tracker does.

    Attributes:
        identifier: Name by which the tracker finds the run again; empty if it needs none.
    """

    identifier: str

    def __init__(self, folder: Path, config: RunConfig, identifier: str):
        """Begin a run, or continue the one that has an identifier."""

    def numbers(self, axis: str, values: Mapping[str, float], step: int) -> None:
        """Add a point to curves, at ``step`` of an axis."""

    def picture(self, picture: Picture) -> None:
        """Add a picture."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    identifier = ""

    def __init__(self, folder: Path, config: RunConfig, identifier: str):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        self.writer.add_text("config", f"```toml\n{to_toml(config)}```")

    def numbers(self, axis: str, values: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, picture: Picture) -> None:
        """Add an image."""
        import numpy as np

        self.writer.add_image(picture.name, np.asarray(_image(picture)), dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class Wandb:
    """A run of Weights & Biases, in the project ``noprop`` or that of ``WANDB_PROJECT``."""

    def __init__(self, folder: Path, config: RunConfig, identifier: str):
        import wandb  # pyright: ignore[reportMissingImports]

        self.wandb, self.axes = wandb, set[str]()
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=identifier or None,
            resume="allow",
            config=to_mapping(config),
        )
        self.identifier = self.run.id

    def numbers(self, axis: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers over an axis of their own, because the steps of wandb only rise."""
        for name in values.keys() - self.axes:
            self.run.define_metric(name, step_metric=axis)
        self.axes |= values.keys()
        self.run.log({**values, axis: step})

    def picture(self, picture: Picture) -> None:
        """Log an image."""
        self.run.log({picture.name: self.wandb.Image(_image(picture))})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Trackio:
    """A run of trackio, in the project ``noprop`` on this machine."""

    def __init__(self, folder: Path, config: RunConfig, identifier: str):
        import trackio  # pyright: ignore[reportMissingImports]

        self.trackio = trackio
        self.identifier = identifier or f"{folder.name}-{time.time_ns() // 1_000_000:x}"
        self.run = trackio.init(
            PROJECT,
            self.identifier,
            config=to_mapping(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def numbers(self, axis: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log(dict(values), step=step)

    def picture(self, picture: Picture) -> None:
        """Log an image."""
        self.run.log({picture.name: self.trackio.Image(_image(picture))})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow, in the experiment ``noprop`` or that of ``MLFLOW_EXPERIMENT_NAME``."""

    def __init__(self, folder: Path, config: RunConfig, identifier: str):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        self.client = MlflowClient()
        self.identifier = identifier or self._begin(folder, config)

    def _begin(self, folder: Path, config: RunConfig) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        run = self.client.create_run(experiment, run_name=folder.name).info.run_id
        for field, value in _flat(to_mapping(config)).items():
            self.client.log_param(run, field, value)
        return run

    def numbers(self, axis: str, values: Mapping[str, float], step: int) -> None:
        """Log metrics."""
        for name, value in values.items():
            self.client.log_metric(self.identifier, name, value, step=step)

    def picture(self, picture: Picture) -> None:
        """Log an image as an artifact."""
        self.client.log_image(self.identifier, _image(picture), f"{picture.name}.png")

    def close(self) -> None:
        """End the run."""
        self.client.set_terminated(self.identifier)


def _image(picture: Picture) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(picture.png)).convert("RGB")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of nested tables by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


# The names of --track, which are those of the extras and of the packages.
TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers exist and are installed.

    Raises:
        ConfigError: If one is not; the message names it, and the extra that brings it.
    """
    from importlib import import_module

    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"track: wanted some of {', '.join(TRACKERS)}, got {name!r}")
        try:
            import_module(name)
        except ImportError as error:
            why = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
            raise ConfigError(
                f"track: {name} is not installed{why}: pip install 'noprop[{name}]'"
            ) from None


class Tracking:
    """Sends the events of a run to trackers, and passes them on.

    A tracker that fails is reported in one line and left out; the training continues.

    Args:
        trackers: The trackers by name.
        folder: The run folder, whose earlier events are counted.
        config: Its configuration.
        emit: Called with every event.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], folder: Path, config: RunConfig, emit: Emit
    ):
        self.trackers, self.emit = dict(trackers), emit
        self.batch_size = config.train.batch_size
        self.together = config.method.coupled
        before = read_metrics(folder) if trackers else []
        self.epochs = sum(event["event"] == "epoch" for event in before)
        self.images, self.since = 0, time.monotonic()
        self.work: dict[str, int] = {}  # updates that read images, of each group

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.emit(event)
        match event:
            case Progress():
                self._progress(event)
            case Epoch():
                self._epoch(event)
            case Evaluated():
                self._evaluated(event.results)

    def _progress(self, event: Progress) -> None:
        group = "all" if self.together else event.unit
        if not self.work:
            self.since = time.monotonic()
        self.images += (event.work - self.work.get(group, event.work)) * self.batch_size
        self.work[group] = event.work

    def _epoch(self, event: Epoch) -> None:
        unit = event.unit
        values: dict[str, Any] = {
            f"loss/{unit}": event.loss,
            f"validation_loss/{unit}": event.validation_loss,
            f"lr/{unit}": event.lr,
            **{f"{name}/{unit}": value for name, value in event.terms.items()},
            **{f"embedding/{name}": value for name, value in (event.embedding or {}).items()},
            **{f"method/{name}": value for name, value in (event.facts or {}).items()},
        }
        self._send(f"epoch/{unit}", values, event.epoch)
        self.epochs += 1
        seconds = time.monotonic() - self.since
        if self.images and seconds > 0:
            rate = self.images / seconds
            self._send("epochs", {"images_per_second": rate}, self.epochs)
            self.images, self.since = 0, time.monotonic()

    def _evaluated(self, results: Mapping[str, Any]) -> None:
        values = {
            f"{name}/{mode}": score.get(name)
            for mode, score in results.get("modes", {}).items()
            for name in ("accuracy", "log_loss")
        }
        values["seconds"] = results.get("training", {}).get("seconds")
        self._send("epochs", values, self.epochs)

    def _send(self, axis: str, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers among some values."""
        numbers = {n: float(v) for n, v in values.items() if isinstance(v, int | float)}
        if numbers:
            self._each(lambda tracker: tracker.numbers(axis, numbers, step))

    def draw(self, model: Model, examples: Examples) -> None:
        """Draw the finished run, and send the pictures.

        Args:
            model: The trained model.
            examples: Examples, the first of which is followed through the chain.
        """
        if not self.trackers:
            return
        try:
            pictures = draw_run(model.folder, model, examples)
        except ConfigError as error:
            tell(f"the trackers get no pictures: {error}")
            return
        for picture in pictures:
            if picture.png:
                self._each(lambda tracker, p=picture: tracker.picture(p))

    def close(self) -> None:
        """End all trackers."""
        self._each(lambda tracker: tracker.close())
        self.trackers = {}

    def _each(self, call: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                with redirect_stdout(sys.stderr):
                    call(tracker)
            except Exception as error:  # a network, a server, or a full disk
                del self.trackers[name]
                words = " ".join(str(error).split())[:200]
                tell(f"{name} failed and is left out: {words or type(error).__name__}")


@contextmanager
def tracked(
    names: Sequence[str], folder: Path, config: RunConfig, emit: Emit
) -> Iterator[Tracking]:
    """Yield a function that sends events to trackers as well as to ``emit``.

    Args:
        names: Names of trackers; none sends events to ``emit`` alone.
        folder: The run folder.
        config: Its configuration.
        emit: Called with every event.

    Raises:
        RunError: If a tracker cannot begin or continue the run.
    """
    path, known = folder / "trackers.json", dict[str, Any]()
    if names and path.exists():
        known = read_object(path)
    trackers: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        before = known.get(name, "")
        if before and not (isinstance(before, str) and IDENTIFIER.fullmatch(before)):
            raise RunError(f"{path}: is damaged (the name of the run for {name})")
        try:
            with redirect_stdout(sys.stderr):  # standard output is that of the command
                trackers[name] = TRACKERS[name](folder, config, before)
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise RunError(f"track: {name} cannot begin: {words}") from error
    if names:
        found = known | {name: t.identifier for name, t in trackers.items() if t.identifier}
        write_whole(path, (json.dumps(found, indent=1) + "\n").encode())
    tracking = Tracking(trackers, folder, config, emit)
    try:
        yield tracking
    finally:
        tracking.close()
