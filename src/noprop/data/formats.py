"""Files to tensors: idx (MNIST), CIFAR's binary records, and NumPy's ``.npy`` and ``.npz``.

Each reader takes the whole file or raises a :class:`~noprop.errors.DataError` that names it: a
short, long, damaged or mislabelled file is never half-read. Nothing in a file is executed.
"""

import gzip
import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from noprop.data.arrays import Dataset, Examples, split_off_test
from noprop.errors import DataError
from noprop.files import may_unpack, open_regular

__all__ = ["array_names", "read_arrays", "read_cifar", "read_idx", "read_npz", "to_examples"]

GZIP_MAGIC = b"\x1f\x8b"
NPY_MAGIC = b"\x93NUMPY"
HEADER_BYTES = 1 << 16  # of an array; NumPy itself reads 10,000
TEXT_BYTES = 1 << 24  # 16 MiB
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
    with open_data(path) as file:
        packed = os.fstat(file.fileno()).st_size
        if file.peek(2)[:2] != GZIP_MAGIC:
            return _read_idx(path, file, dims, packed)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_idx(path, stream, dims, packed)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: truncated or damaged gzip file: {error}") from error


def _read_idx(path: Path, file: BufferedIOBase, dims: int, packed: int) -> UInt8[Tensor, "..."]:
    """Read an idx file, unzipped, of ``packed`` bytes on disk."""
    start = 4 + 4 * dims
    header = file.read(start)
    if len(header) < 4 or header[:2] != b"\0\0":
        raise DataError(
            f"{path}: not an idx file: begins with {header[:4].hex() or 'nothing'}, "
            f"wanted 0000080{dims}"
        )
    if header[2] != 8 or header[3] != dims:
        raise DataError(
            f"{path}: holds {header[3]}-dimensional idx data of type 0x{header[2]:02x}, wanted "
            f"{dims} dimension(s) of type 0x08; were images and labels exchanged?"
        )
    if len(header) < start:
        raise DataError(f"{path}: ends within its idx header")
    shape = struct.unpack(f">{dims}I", header[4:])
    expected = math.prod(shape)
    if expected == 0:
        raise DataError(f"{path}: its idx header says {shape}, so it holds no data")
    claim = f"{path}: its idx header says {shape}, {expected} bytes, but"
    if not may_unpack(expected, packed):
        raise DataError(f"{claim} the file has {packed}: refused as a bomb")
    if not isinstance(file, gzip.GzipFile) and packed - start != expected:
        raise DataError(f"{claim} {packed - start} follow it")
    data = bytearray(expected)
    found = file.readinto(data)
    if found < expected:
        raise DataError(f"{claim} {found} follow it")
    if file.read(1):  # of a gzip file this compares its checksum too
        raise DataError(f"{claim} more follow it")
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)


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
    size = len(label_limits) + math.prod(CIFAR_SHAPE)
    with open_data(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length % size:
            raise DataError(
                f"{path}: {length} bytes are not whole records of {size} bytes: "
                f"truncated, or of another CIFAR"
            )
        if records is not None and length != records * size:
            raise DataError(f"{path}: holds {length // size} records, wanted {records}")
        data = bytearray(length)
        file.readinto(data)
    table = torch.frombuffer(data, dtype=torch.uint8).view(-1, size)
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
    parts = ("x_train", "y_train", "x_test", "y_test")
    held = array_names(path)
    if all(key in held for key in parts):
        arrays = read_arrays(path, parts)
        train = to_examples(path, arrays, "x_train", "y_train")
        test = to_examples(path, arrays, "x_test", "y_test")
        return Dataset(str(path), train, test, _numbered(path, train))
    if "x" in held and "y" in held and not any(key in held for key in parts):
        whole = to_examples(path, read_arrays(path, ("x", "y")), "x", "y")
        return split_off_test(str(path), whole, _numbered(path, whole))
    raise DataError(
        f"{path}: holds the arrays {name_some(held)}; "
        f"wanted x and y, or x_train, y_train, x_test and y_test"
    )


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file, or ``x`` for the array of an ``.npy`` file."""
    with _opened(path) as (_, members):
        return list(members)


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those arrays of an ``.npz`` file by name; the array of an ``.npy`` file as ``x``.

    Only they are unpacked, each only when its header agrees with what the file has.

    Args:
        path: the file.
        names: each in :func:`array_names` of it.

    Raises:
        DataError: If the file is empty, damaged, no NumPy file, unpacks to more than
            :func:`~noprop.files.may_unpack` allows, or holds Python objects, which could run code
            when read and therefore never are.
    """
    with _opened(path) as (packed, members):
        return {name: _read_array(members[name], packed) for name in names}


@dataclass(frozen=True)
class _Member:
    """An array in a file: its name there, its size in bytes, unpacked and packed, and a way in."""

    name: str
    size: int
    packed: int
    open: Callable[[], BufferedIOBase]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, dict[str, _Member]]]:
    """The size of a NumPy file and its arrays by name; what fails in the block is reported of it.

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
        head = io.BytesIO(stream.read(HEADER_BYTES))
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


def read_bytes(path: Path, limit: int = TEXT_BYTES) -> bytes:
    """The bytes of a small file.

    Raises:
        DataError: If there is no such file, or it has no byte or more than ``limit``.
    """
    with open_data(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path}: has more than {limit} bytes, so it is not the file that it seems")
    return data


def open_data(path: Path) -> BufferedReader:
    """The opened file, or a DataError where there is none, an empty one, or not a regular one."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise DataError(f"{path}: the file is empty")
    return file


def name_some(names: Sequence[str]) -> str:
    """The first few names, each cut where it is long, and how many others there are."""
    shown = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:10]]
    return (", ".join(shown) or "(none)") + (f", … ({len(names)})" if len(names) > 10 else "")


def _numbered(path: Path, examples: Examples) -> tuple[str, ...]:
    """Class names "0", "1", ...: as many as the labels of the training part need."""
    highest = int(examples.y.max())
    if highest >= len(examples):  # some class has no example; do not make a billion names to say so
        raise DataError(
            f"{path}: a label is {highest}, but {len(examples)} examples cannot fill "
            f"{highest + 1} classes; labels must be 0..m-1 with none left out"
        )
    return tuple(str(label) for label in range(highest + 1))
