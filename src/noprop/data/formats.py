"""Files to tensors: idx (MNIST), CIFAR's binary records, and NumPy's ``.npy`` and ``.npz``.

Each reader takes the whole file or raises a :class:`~noprop.errors.DataError` that names it: a
short, long, damaged or mislabelled file is never half-read. Nothing in a file is executed.
"""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from noprop.data.arrays import Dataset, Examples, split_off_test
from noprop.errors import DataError

__all__ = ["read_arrays", "read_cifar", "read_idx", "read_npz", "to_examples"]

GZIP_MAGIC = b"\x1f\x8b"
CIFAR_SHAPE = (3, 32, 32)


def read_idx(path: Path, dims: int) -> UInt8[Tensor, "..."]:
    """Read an idx file of unsigned bytes, gzipped or not (seen from its first bytes).

    The header is big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions,
    and each dimension in four bytes; the numbers follow, last dimension fastest.

    Args:
        path: the file.
        dims: dimensions it must have: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        DataError: If the file is anything but one such array, complete and nothing more.
    """
    data = read_bytes(path)
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: truncated or damaged gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(
            f"{path}: not an idx file: begins with {data[:4].hex() or 'nothing'}, "
            f"wanted 0000080{dims}"
        )
    if data[2] != 8 or data[3] != dims:
        raise DataError(
            f"{path}: holds {data[3]}-dimensional idx data of type 0x{data[2]:02x}, wanted {dims} "
            f"dimension(s) of type 0x08; were images and labels exchanged?"
        )
    start = 4 + 4 * dims
    if len(data) < start:
        raise DataError(f"{path}: ends within its idx header")
    shape = struct.unpack(f">{dims}I", data[4:start])
    expected = math.prod(shape)
    if expected == 0:
        raise DataError(f"{path}: its idx header says {shape}, so it holds no data")
    if len(data) - start != expected:
        raise DataError(
            f"{path}: its idx header says {shape}, {expected} bytes, "
            f"but {len(data) - start} follow it"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)


def read_cifar(
    path: Path, label_limits: tuple[int, ...], records: int | None = None
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """Read a file of CIFAR's binary version.

    A record is one byte per kind of label and 3072 bytes of pixels: red, green, blue, row by row.

    Args:
        path: the file.
        label_limits: number of classes of each label byte: (10,) for CIFAR-10, (20, 100) for the
            coarse and the fine label of CIFAR-100. The last label is the one returned.
        records: how many there must be; the format itself cannot tell.

    Raises:
        DataError: If the file has a part of a record, another number of them, or a label that is
            out of range.
    """
    data = read_bytes(path)
    size = len(label_limits) + math.prod(CIFAR_SHAPE)
    if len(data) % size:
        raise DataError(
            f"{path}: {len(data)} bytes are not whole records of {size} bytes: "
            f"truncated, or of another CIFAR"
        )
    if records is not None and len(data) != records * size:
        raise DataError(f"{path}: holds {len(data) // size} records, wanted {records}")
    table = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, size)
    for column, limit in enumerate(label_limits):
        worst = int(table[:, column].max())
        if worst >= limit:
            raise DataError(f"{path}: a label is {worst}, wanted 0..{limit - 1}")
    labels = table[:, len(label_limits) - 1].long()
    return table[:, len(label_limits) :].reshape(-1, *CIFAR_SHAPE), labels


def read_npz(path: Path) -> Dataset:
    """Read a data set from ``x_train, y_train, x_test, y_test``, or from ``x, y``.

    With ``x, y`` the test part is one fifth, the same in every run. Other names are not read. How
    arrays become examples is told in :func:`to_examples`.

    Raises:
        DataError: If the file is damaged, holds Python objects, or its arrays are not a data set.
    """
    arrays = read_arrays(path)
    parts = ("x_train", "y_train", "x_test", "y_test")
    if all(key in arrays for key in parts):
        train = to_examples(path, arrays, "x_train", "y_train")
        test = to_examples(path, arrays, "x_test", "y_test")
        return Dataset(str(path), train, test, _numbered(path, train))
    if "x" in arrays and "y" in arrays and not any(key in arrays for key in parts):
        whole = to_examples(path, arrays, "x", "y")
        return split_off_test(str(path), whole, _numbered(path, whole))
    raise DataError(
        f"{path}: holds the arrays {', '.join(arrays) or '(none)'}; "
        f"wanted x and y, or x_train, y_train, x_test and y_test"
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name; the array of an ``.npy`` file as ``x``.

    Raises:
        DataError: If the file is empty, damaged, no NumPy file, or holds Python objects, which
            could run code when read and therefore never are.
    """
    read_bytes(path, limit=1)
    try:
        with path.open("rb") as file:  # given a path, NumPy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            with loaded:
                return {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable NumPy file of plain numbers: {error}") from error


def to_examples(path: Path, arrays: Mapping[str, np.ndarray], x: str, y: str) -> Examples:
    """Check a pair of arrays and make examples of them.

    Labels are whole numbers from 0, shape (N,). For inputs see :func:`to_inputs`.

    Args:
        path: the file they come from, for messages.
        arrays: by name.
        x: name of the inputs, (N, ...).
        y: name of the labels.

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
    """Inputs as this package holds them: uint8 images (N, C, H, W) or float32 features (N, ...).

    uint8 arrays of three or four dimensions are images: (N, H, W) is grey; four dimensions are
    (N, C, H, W) when axis 1 alone has length 1 or 3, and (N, H, W, C) when the last axis alone has.
    All other numbers are features and keep their shape.

    Raises:
        DataError: If the array is empty, has no numbers or a NaN or infinity, or if its layout as
            images is not plain.
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


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """The file's bytes (the first ``limit`` of them), or a DataError where there are none."""
    try:
        with path.open("rb") as file:
            data = file.read(limit)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


def _numbered(path: Path, examples: Examples) -> tuple[str, ...]:
    """Class names "0", "1", ...: as many as the labels of the training part need."""
    highest = int(examples.y.max())
    if highest >= len(examples):  # some class has no example; do not make a billion names to say so
        raise DataError(
            f"{path}: a label is {highest}, but {len(examples)} examples cannot fill "
            f"{highest + 1} classes; labels must be 0..m-1 with none left out"
        )
    return tuple(str(label) for label in range(highest + 1))
