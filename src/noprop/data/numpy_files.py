"""NumPy's ``.npy`` and ``.npz`` files to data sets.

Each reader takes the whole file or raises a :class:`~noprop.errors.DataError` that names it: a
short, long, damaged or mislabelled file is never half-read. Nothing in a file is executed.
"""

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from noprop.data.arrays import Dataset, Examples, split_off_test
from noprop.data.formats import open_data
from noprop.data.labels import find_classes
from noprop.errors import DataError
from noprop.files import may_unpack

__all__ = [
    "array_names",
    "find_inputs",
    "looks_like_pixels",
    "name_some",
    "read_arrays",
    "read_npz",
    "to_dataset",
    "to_inputs",
]

X, Y = ("x", "X", "data"), ("y", "labels", "target")  # names of arrays, the preferred one first
X_TRAIN, X_TEST = ("x_train", "X_train"), ("x_test", "X_test")
NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 16  # of an array; NumPy itself reads 10,000


def read_npz(path: Path) -> Dataset:
    """Read a data set from ``x_train, y_train, x_test, y_test``, or from ``x, y``.

    With ``x, y`` the test part is one fifth, the same in every run. ``X`` and ``data`` are names
    of x as well, ``labels`` and ``target`` of y, and ``X_train`` and ``X_test`` of the parts; of
    several the first counts. ``class_names`` are the names of the classes. Other names are not
    read. See :func:`to_dataset` for how arrays become examples.

    Raises:
        DataError: If the file is damaged, holds Python objects, or its arrays are not a data set.
    """
    held = array_names(path)
    parts = [_first(held, names) for names in (X_TRAIN, ("y_train",), X_TEST, ("y_test",))]
    whole = [_first(held, X), _first(held, Y)]
    keys = parts if any(parts) else whole
    if not all(keys):
        raise DataError(
            f"{path}: holds the arrays {name_some(held)}; "
            f"wanted x and y, or x_train, y_train, x_test and y_test"
        )
    keys = [key for key in keys if key]
    names = ["class_names"] if "class_names" in held else []
    arrays = read_arrays(path, [*keys, *names])
    if looks_like_pixels(arrays[keys[0]]):
        warnings.warn(
            f"{path}: {keys[0]} holds floats in 0..1 in the shape of images, which are read as "
            "features; to train on images save it as uint8, multiplied by 255",
            stacklevel=2,
        )
    return to_dataset(str(path), str(path), arrays, keys, arrays.get("class_names"))


def find_inputs(held: Sequence[str]) -> str | None:
    """Return the name of the inputs of a prediction among those of arrays, or None."""
    return _first(held, (*X, *X_TEST))


def _first(held: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in held), None)


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an ``.npz`` file, or ``x`` for that of an ``.npy`` file."""
    with _opened(path) as (_, members):
        return list(members)


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read some arrays of an ``.npz`` file by name, or the array of an ``.npy`` file as ``x``.

    Only these are unpacked, each only if its header agrees with the content of the file.

    Args:
        path: The file.
        names: Names from :func:`array_names` of the file.

    Raises:
        DataError: If the file is empty, damaged, no NumPy file, unpacks to more than
            :func:`~noprop.files.may_unpack` allows, or holds Python objects, which could run code
            when read and therefore never are.
    """
    with _opened(path) as (packed, members):
        return {name: _read_array(members[name], packed) for name in names}


@dataclass(frozen=True)
class _Member:
    """An array in a file: its name, its size in bytes unpacked and packed, and how to open it."""

    name: str
    size: int
    packed: int
    open: Callable[[], BufferedIOBase]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, dict[str, _Member]]]:
    """Yield the size and the arrays of a NumPy file; report failures of the block as damage to it.

    Damage shows as exceptions of any kind: struct.error, SyntaxError, RecursionError, MemoryError.
    """
    with open_data(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        size = os.fstat(file.fileno()).st_size
        try:
            if file.peek(6)[:6] == NPY_MAGIC:
                yield size, {"x": _Member("x", size, size, partial(open_data, path))}
                return
            with zipfile.ZipFile(file) as archive:
                members = [_member(archive, info) for info in archive.infolist()]
                yield size, {member.name.removesuffix(".npy"): member for member in members}
        except DataError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{path}: not a readable NumPy file of plain numbers: {why}") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    def opened() -> BufferedIOBase:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks the others without a limit; NumPy writes only these two.
            raise ValueError(f"{name_some([info.filename])} is neither stored nor deflated")
        return cast("zipfile.ZipExtFile", archive.open(info))

    return _Member(info.filename, info.file_size, info.compress_size, opened)


def _read_array(member: _Member, file_size: int) -> np.ndarray:
    """Read one array whole, its header first.

    Raises:
        ValueError: If the header does not agree with the sizes, or the array is not of numbers.
    """
    name = name_some([member.name])
    packed = min(member.packed, file_size)
    if not may_unpack(member.size, packed):
        raise ValueError(f"{name} unpacks from {packed} bytes to {member.size}: refused as a bomb")
    with member.open() as stream:
        head = io.BytesIO(stream.read(MAX_HEADER_BYTES))
        if head.getvalue()[:6] != NPY_MAGIC:
            raise ValueError(f"{name} begins with no header of an array")
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has a header of version {version}, wanted 1.0 or 2.0")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(head)
    if dtype.kind not in "biufcSU" or not dtype.itemsize:  # text is for labels
        raise ValueError(f"{name} is of type {name_some([str(dtype)])}, wanted numbers or text")
    expected, held = math.prod(shape) * dtype.itemsize, member.size - head.tell()
    if min(shape, default=0) < 0 or expected != held:
        raise ValueError(
            f"{name} says that it is {dtype} of shape {str(shape)[:60]}, but {held} bytes follow"
        )
    with member.open() as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # at the end of a member its checksum is compared
            raise ValueError(f"{name} is longer than its header says")
    return array


def to_dataset(
    name: str,
    place: str,
    arrays: Mapping[str, np.ndarray],
    keys: Sequence[str],
    class_names: np.ndarray | None = None,
    *,
    rows: bool = False,
) -> Dataset:
    """Check arrays and return them as a data set.

    Args:
        name: Name of the data set.
        place: Source of the arrays, for messages.
        arrays: The arrays by name.
        keys: Names of x and y, or of x and y of the training part, then of the test part. For
            inputs see :func:`to_inputs`, for labels :func:`~noprop.data.labels.find_classes`.
        class_names: Names of the classes.
        rows: Whether the examples are rows of a table, and are named after them from 1.

    Raises:
        DataError: If lengths, types, shapes or values are not those of a data set.
    """
    inputs = [to_inputs(place, key, arrays[key]) for key in keys[::2]]
    for x, y in zip(keys[::2], keys[1::2], strict=True):
        if arrays[y].ndim and len(arrays[y]) != len(arrays[x]):
            raise DataError(
                f"{place}: {x} has {len(arrays[x])} examples but {y} has {len(arrays[y])} labels"
            )
    classes = find_classes(place, keys[1], arrays[keys[1]], class_names)
    labels = [classes.encode(place, key, arrays[key]) for key in keys[1::2]]
    train, *test = (
        Examples(x, y, tuple(f"row {n}" for n in range(1, len(y) + 1)) if rows else ())
        for x, y in zip(inputs, labels, strict=True)
    )
    if not test:
        return split_off_test(name, train, classes.names)
    return Dataset(name, train, test[0], classes.names)


def to_inputs(path: Path | str, key: str, array: np.ndarray) -> Shaped[Tensor, "n ..."]:
    """Return inputs as uint8 images (N, C, H, W) or as float32 features (N, ...).

    uint8 arrays of three or four dimensions are images: (N, H, W) is grey; four dimensions are
    (N, C, H, W) when axis 1 alone has length 1 or 3, and (N, H, W, C) when the last axis alone has.
    All other numbers are features and keep their shape.

    Raises:
        DataError: If the array is empty, has no numbers or a NaN or infinity, or if its layout as
            images is ambiguous.
    """
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: {key} is of type {array.dtype}, wanted numbers")
    if array.size == 0 or array.ndim < 2:
        raise DataError(f"{path}: {key} has shape {array.shape}, wanted (N, ...) and not empty")
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        with np.errstate(over="ignore"):  # what overflows float32 is infinite, and found below
            features = torch.from_numpy(array.astype(np.float32))
        if not bool(features.isfinite().all()):
            raise DataError(f"{path}: {key} holds a NaN or a number that is infinite in float32")
        return features
    # A copy in the machine's own order: views may have negative strides, which torch refuses.
    images = torch.from_numpy(array.copy(order="C"))
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise DataError(
            f"{path}: {key} has shape {array.shape}: exactly one of axis 1 (N, C, H, W) and axis 3 "
            f"(N, H, W, C) must have length 1 or 3 for the layout to be plain"
        )
    return images if first else images.permute(0, 3, 1, 2).contiguous()


def looks_like_pixels(x: np.ndarray) -> bool:
    """Return whether an array has the shape of images, and floats in 0..1."""
    image = x.ndim == 3 or (x.ndim == 4 and (x.shape[1] in (1, 3)) != (x.shape[3] in (1, 3)))
    return bool(image and x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 1)


def name_some(names: Sequence[str]) -> str:
    """Return the first few names, long ones cut, and the number of all if there are more."""
    shown = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:10]]
    return (", ".join(shown) or "(none)") + (f", … ({len(names)})" if len(names) > 10 else "")
