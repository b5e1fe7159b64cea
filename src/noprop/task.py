"""The data of a run: what networks must know of them, and the three parts."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from noprop.config import RunConfig
from noprop.data import GIVEN, Dataset, Examples, Normalization, hold_out, load_dataset
from noprop.data.features import with_features
from noprop.errors import ConfigError, DataError

__all__ = ["RunData", "Task", "load_data", "split_data"]


@dataclass(frozen=True)
class Task:
    """The properties of the data that are needed to build networks without the data."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    normalization: Normalization
    dtype: str = "uint8"  # of an input as it is read: pixels, or "float32" features
    columns: tuple[str, ...] = ()  # names of the features of a table

    @property
    def num_classes(self) -> int:
        """M."""
        return len(self.class_names)


@dataclass(frozen=True)
class RunData:
    """The three parts and the task. Only ``evaluate`` reads the test part."""

    task: Task
    train: Examples
    validation: Examples
    test: Examples


def load_data(config: RunConfig, data_dir: Path | None = None) -> RunData:
    """Read, split and measure the data set of a run; pixels stay uint8."""
    c = config.data
    if c.dataset == GIVEN and not Path(GIVEN).exists():
        raise DataError(f"{GIVEN}: the run was trained on arrays of a script; give them as data")
    how = {"image_size": c.image_size, "color": c.color, "label": c.label}
    return split_data(config, load_dataset(c.dataset, data_dir=data_dir, **how))


def split_data(config: RunConfig, dataset: Dataset) -> RunData:
    """Split and measure a data set, as the configuration of the run says."""
    c = config.data
    if c.features:
        dataset = with_features(dataset, c.features)
    sizes = {"train_size": c.train_size, "test_size": c.test_size}
    parts = hold_out(dataset, c.validation, config.train.seed, **sizes)
    dtype = str(parts.train.x.dtype).removeprefix("torch.")
    normalization = _normalization(config, parts.train.x)
    task = Task(dataset.shape, dataset.class_names, normalization, dtype, dataset.columns)
    return RunData(task, parts.train, parts.validation, parts.test)


def _normalization(config: RunConfig, x: Tensor) -> Normalization:
    """Return the statistics of the training part, or those that map pixels to 0..1 or -1..1.

    Raises:
        ConfigError: If a range of pixels is chosen for features, which have no fixed range.
    """
    kind = config.data.normalization
    if kind == "standard":
        return Normalization.of(x)
    if x.dtype != torch.uint8:
        raise ConfigError(
            f"data.normalization: {kind} is for pixels, and {config.data.dataset} has features; "
            "use standard"
        )
    mean, std = (0.0, 1.0) if kind == "unit" else (0.5, 0.5)
    return Normalization((mean,) * x.shape[1], (std,) * x.shape[1])
