"""Arrays of a script to data sets: ``data=(x, y)`` or ``data=(x, y, x_test, y_test)``."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noprop.data.arrays import Dataset
from noprop.data.numpy_files import looks_like_pixels, to_dataset
from noprop.errors import DataError

__all__ = ["GIVEN", "as_pixels", "dataset_of"]

GIVEN = "arrays"  # the name of a data set that a script gave
NAMES = ("x", "y", "x_test", "y_test")


def dataset_of(data: Sequence[Any]) -> Dataset:
    """Return the data set of arrays or tensors.

    With two of them the test part is one fifth, the same in every run. Images are uint8, or floats
    in 0..1, which are multiplied by 255 and rounded; see :func:`~noprop.data.numpy_files.to_inputs`
    for the shapes. All other numbers are features. Labels are whole numbers or text.

    Args:
        data: ``(x, y)`` or ``(x, y, x_test, y_test)``.

    Raises:
        DataError: If there are neither two nor four, or they are not a data set.
    """
    if len(data) not in (2, 4):
        raise DataError(f"data: wanted (x, y) or (x, y, x_test, y_test), got {len(data)} arrays")
    arrays = {name: _array(name, value) for name, value in zip(NAMES, data, strict=False)}
    images = [name for name in arrays if name[0] == "x" and looks_like_pixels(arrays[name])]
    if len(images) == len(data) // 2:
        _warn("data")
        arrays |= {name: as_pixels(arrays[name]) for name in images}
    return to_dataset(GIVEN, "data", arrays, list(arrays))


def as_pixels(x: Any) -> Any:
    """Return floats in 0..1 as uint8 in 0..255, a tensor or an array as it came."""
    scaled = x * 255
    if isinstance(x, Tensor):
        return scaled.round().to(torch.uint8)
    return scaled.round().astype(np.uint8)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if name[0] == "x" and array.dtype.kind not in "biuf":
        raise DataError(f"data: {name} is of type {array.dtype}, wanted numbers")
    return array


def _warn(name: str) -> None:
    warnings.warn(
        f"{name}: floats in 0..1 are taken as images; they are multiplied by 255 and rounded",
        stacklevel=5,
    )
