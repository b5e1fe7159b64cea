"""Files from anywhere: opened only where they are regular, and read only up to a stated size."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["FREE_BYTES", "RATIO", "may_unpack", "open_regular"]

FREE_BYTES = 1 << 26  # 64 MiB, which is 256 MiB of float32 and as much again while it is split
RATIO = 100  # MNIST's images are compressed to a fifth; only a bomb or a blank reaches 1000


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. A pipe, a socket or a device, which may never end, is refused.

    Raises:
        OSError: If there is no such file, or it is not a regular one.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Open as ``open`` does, but do not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def may_unpack(unpacked: int, packed: int) -> bool:
    """Whether so many bytes may come of so many: 64 MiB at most, or a hundredfold.

    A file of a kilobyte can claim to hold terabytes. With this limit it costs 64 MiB at most, and
    a larger file no more than a hundred times its own size.
    """
    return unpacked <= max(FREE_BYTES, RATIO * packed)
