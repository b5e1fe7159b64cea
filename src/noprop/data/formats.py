"""Files to tensors: idx (MNIST) and CIFAR's binary records.

Each reader takes the whole file or raises a :class:`~noprop.errors.DataError` that names it: a
short, long, damaged or mislabelled file is never half-read. Nothing in a file is executed.
"""

import gzip
import math
import os
import struct
import zlib
from io import BufferedIOBase, BufferedReader
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from noprop.errors import DataError
from noprop.files import may_unpack, open_regular

__all__ = ["open_data", "read_bytes", "read_cifar", "read_idx"]

GZIP_MAGIC = b"\x1f\x8b"
MAX_TEXT_BYTES = 1 << 24  # 16 MiB
CIFAR_SHAPE = (3, 32, 32)


def read_idx(path: Path, dims: int) -> UInt8[Tensor, "..."]:
    """Read an idx file of unsigned bytes, gzipped or not (seen from its first bytes).

    The header is big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions,
    and each dimension in four bytes; the numbers follow, last dimension fastest.

    Args:
        path: The file.
        dims: Number of dimensions that it must have: 3 for images (N, H, W), 1 for labels (N,).

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
        path: The file.
        label_limits: Number of classes of each label byte: (10,) for CIFAR-10, (20, 100) for the
            coarse and the fine label of CIFAR-100. The last label is the one returned.
        records: Number of records that it must have; the format itself does not state it.

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


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of a small file.

    Raises:
        DataError: If the file is missing or empty, or has more bytes than ``limit``.
    """
    with open_data(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path}: has more than {limit} bytes, so it is not the file that it seems")
    return data


def open_data(path: Path) -> BufferedReader:
    """Open a file.

    Raises:
        DataError: If the file is missing, empty or not a regular file.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise DataError(f"{path}: the file is empty")
    return file
