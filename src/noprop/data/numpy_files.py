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
from noprop.errors import DataError
from noprop.files import may_unpack

__all__ = [
    "array_names",
    "name_some",
    "numbered",
    "read_arrays",
    "read_npz",
    "to_examples",
    "to_inputs",
]

NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 16  # of an array; NumPy itself reads 10,000


def read_npz(path: Path) -> Dataset:
    """Read a data set from ``x_train, y_train, x_test, y_test``, or from ``x, y``.

    With ``x, y`` the test part is one fifth, the same in every run. Other names are not read. See
    :func:`to_examples` for how arrays become examples.

    Raises:
        DataError: If the file is damaged, holds Python objects, or its arrays are not a data set.
    """
    parts = ("x_train", "y_train", "x_test", "y_test")
    held = array_names(path)
    if all(key in held for key in parts):
        arrays = read_arrays(path, parts)
        train = to_examples(path, arrays, "x_train", "y_train")
        test = to_examples(path, arrays, "x_test", "y_test")
        return Dataset(str(path), train, test, numbered(path, train))
    if "x" in held and "y" in held and not any(key in held for key in parts):
        whole = to_examples(path, read_arrays(path, ("x", "y")), "x", "y")
        return split_off_test(str(path), whole, numbered(path, whole))
    raise DataError(
        f"{path}: holds the arrays {name_some(held)}; "
        f"wanted x and y, or x_train, y_train, x_test and y_test"
    )


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
    if dtype.kind not in "biufc":
        raise ValueError(f"{name} is of type {name_some([str(dtype)])}, wanted numbers")
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


def to_examples(path: Path, arrays: Mapping[str, np.ndarray], x: str, y: str) -> Examples:
    """Check a pair of arrays and return them as examples.

    Labels are whole numbers from 0, shape (N,). For inputs see :func:`to_inputs`.

    Args:
        path: The file of the arrays, for messages.
        arrays: The arrays by name.
        x: Name of the inputs, shape (N, ...).
        y: Name of the labels.

    Raises:
        DataError: If lengths, types, shapes or values are not those of a data set.
    """
    inputs, labels = to_inputs(path, x, arrays[x]), arrays[y]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {y} is {labels.dtype} of shape {labels.shape}, "
            f"wanted integers of shape (N,), one label per example"
        )
    if len(labels) != len(inputs):
        raise DataError(f"{path}: {x} has {len(inputs)} examples but {y} has {len(labels)} labels")
    if labels.min() < 0 or labels.max() > 2**31:
        raise DataError(f"{path}: {y} goes from {labels.min()} to {labels.max()}, wanted 0..m-1")
    return Examples(inputs, torch.from_numpy(labels.astype(np.int64)))


def to_inputs(path: Path, key: str, array: np.ndarray) -> Shaped[Tensor, "n ..."]:
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


def name_some(names: Sequence[str]) -> str:
    """Return the first few names, long ones cut, and the number of all if there are more."""
    shown = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:10]]
    return (", ".join(shown) or "(none)") + (f", … ({len(names)})" if len(names) > 10 else "")


def numbered(path: Path, examples: Examples) -> tuple[str, ...]:
    """Return class names "0", "1", ..., as many as the labels of the training part need."""
    highest = int(examples.y.max())
    if highest >= len(examples):  # some class has no example; do not make a billion names to say so
        raise DataError(
            f"{path}: a label is {highest}, but {len(examples)} examples cannot fill "
            f"{highest + 1} classes; labels must be 0..m-1 with none left out"
        )
    return tuple(str(label) for label in range(highest + 1))
