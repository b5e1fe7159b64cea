"""Checks of what a trained model is asked about: raw inputs, and the data of its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noprop.data import as_pixels
from noprop.data.features import features_of
from noprop.errors import DataError
from noprop.task import Task

__all__ = ["check_same_data", "raw_inputs"]


def raw_inputs(x: Any, task: Task, features: str | None) -> Tensor:
    """Return inputs as the model was trained on them: pixels, or float32 features.

    Args:
        x: Raw inputs, a tensor or what NumPy takes for an array. Floats in 0..1 are pixels where
            the model was trained on pixels. Images may also be (N, H, W) or (N, H, W, C), as
            ``noprop.train(data=…)`` takes them.
        task: The task of the model.
        features: Name of the frozen network whose features the model reads, if it does.

    Raises:
        DataError: If they have another shape or type, or are not finite.
    """
    x = x if isinstance(x, Tensor) else torch.as_tensor(_numbers(x))
    if features and x.ndim == 4:
        x = features_of(features, _as_trained_on(x, "uint8"))
    x = _channels_first(_as_trained_on(x, task.dtype), task.shape)
    came = str(x.dtype).removeprefix("torch.")
    if tuple(x.shape[1:]) != task.shape or came != task.dtype:
        raise DataError(
            f"x: wanted {task.dtype} of shape (N, {', '.join(map(str, task.shape))}), as the run "
            f"was trained on, got {came} of shape {tuple(x.shape)}"
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise DataError("x: wanted finite numbers, got NaN or infinity")
    return x


def _numbers(x: Any) -> NDArray[Any]:
    """Return what is no tensor, such as a list or a table of pandas, as an array of numbers."""
    try:
        array = np.asarray(x)
    except ValueError as error:  # of rows of different lengths
        raise DataError(f"x: wanted an array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"x: wanted an array of numbers, got {array.dtype}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _as_trained_on(x: Tensor, dtype: str) -> Tensor:
    """Return float features as float32, and floats in 0..1 as pixels where those were trained on.

    Other inputs stay as they are.
    """
    if not x.is_floating_point() or x.numel() == 0:
        return x
    if dtype == "float32":
        return x.float()
    return as_pixels(x) if bool(((x >= 0) & (x <= 1)).all()) else x


def _channels_first(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return images (N, H, W) or (N, H, W, C) as (N, C, H, W), if that is the model's shape."""
    if len(shape) != 3 or tuple(x.shape[1:]) == shape:
        return x
    if x.ndim == 3 and (1, *x.shape[1:]) == shape:
        return x[:, None]
    if x.ndim == 4 and (x.shape[3], *x.shape[1:3]) == shape:
        return x.permute(0, 3, 1, 2).contiguous()
    return x


def check_same_data(name: str, found: Task, task: Task, folder: Path) -> None:
    """Check that a data set is what a model was trained on.

    Args:
        name: Name of the data set.
        found: Its task.
        task: The task of the model.
        folder: Folder of the model.

    Raises:
        DataError: If it differs in shape, type, columns or classes.
    """
    if (found.shape, found.dtype) != (task.shape, task.dtype):
        raise DataError(
            f"{name}: has {found.dtype} examples of shape {found.shape}; "
            f"{folder} was trained on {task.dtype} of {task.shape}"
        )
    if found.columns != task.columns:
        raise DataError(
            f"{name}: has the columns {_some(found.columns)}; {folder} was trained on "
            f"{_some(task.columns)}"
        )
    if found.class_names != task.class_names:
        raise DataError(
            f"{name}: has the classes {_some(found.class_names)}; {folder} was "
            f"trained on {_some(task.class_names)}"
        )


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and their number if there are more."""
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
