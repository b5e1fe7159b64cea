"""Files and folders: opened only where they are regular, read up to a stated size, written whole.

A run may come from a stranger. Through a symbolic link in it this process would write or delete
what lies beyond, and at a named pipe it would wait forever. :func:`check_folder` refuses both
before a run is read or changed. Files that are changed in place are checked again when opened.
"""

import contextlib
import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from noprop.errors import RunError

__all__ = [
    "FREE_BYTES",
    "RATIO",
    "check_file",
    "check_folder",
    "make_own_folder",
    "may_unpack",
    "open_in_place",
    "open_regular",
    "read_object",
    "write_whole",
]

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


def write_whole(path: Path, content: bytes, before: Path | None = None) -> None:
    """Write or replace a file in one step: no reader ever finds half of it.

    Args:
        path: The file.
        content: Its new content.
        before: A name that the file it replaces keeps. The folder is then flushed to the disk as
            well, so that the names outlast a loss of power.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a new file, never what a link leads to
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
        if before is not None:
            _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


DEPTH = 16  # folders in each other; a run has four
# Bytes of a JSON file: 10,000 class names of 255 characters have 15 MB at most.
LARGEST = 1 << 25
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def check_folder(folder: Path) -> None:
    """See that a folder holds nothing but folders and plain files; it may itself be a link.

    Raises:
        RunError: If not; the message names what else there is. Nothing is changed then.
    """
    left = [(os.fspath(folder), 0)]
    while left:
        place, depth = left.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, depth + 1))
                    elif not entry.is_file(follow_symlinks=False):
                        raise RunError(f"{entry.path}: {_kind(entry)}")
        except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile, or the root is none
            continue
        except OSError as error:
            raise RunError(f"{place}: cannot be read: {error.strerror or error}") from None
        if depth == DEPTH:
            raise RunError(f"{folder}: holds more than {DEPTH} folders in each other")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "is a symbolic link, which a run folder must not hold"
    return "is neither a file nor a folder"


def make_own_folder(path: Path) -> None:
    """Make a folder that nobody else can use, or see that it is one; others may write around it.

    Raises:
        RunError: If it is a link, a file, or another user's.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be made: {error.strerror or error}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RunError(f"{path}: is a link, or a folder of another user; remove it")


def open_in_place(path: Path, flags: int) -> int:
    """Open a file that is changed in place, following no link; it is made if it is absent.

    Other files of a run are replaced as a whole, which leaves what a hard link shares untouched.

    Raises:
        RunError: If it is no plain file, or is one that has another name too.
    """
    check_file(path)
    file = os.open(path, flags | os.O_CREAT | NO_FOLLOW, 0o666)
    if os.fstat(file).st_nlink > 1:
        os.close(file)
        raise _shared(path)
    return file


def check_file(path: Path) -> None:
    """See that a file that is changed in place is absent, or a plain file of one name.

    Raises:
        RunError: If not.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{path}: is no plain file, wanted one")
    if status.st_nlink > 1:
        raise _shared(path)


def _shared(path: Path) -> RunError:
    return RunError(
        f"{path}: is a hard link, and another file would change with it; put a copy in its place"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file of a run.

    Raises:
        RunError: If the file cannot be read, or holds something else.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RunError(f"{path}: is damaged (it has more than {LARGEST >> 20} MiB)")
        value = json.loads(content.decode())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise RunError(f"{path}: is damaged (nested too deeply)") from None
    except ValueError as error:
        raise RunError(f"{path}: is damaged ({error})") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: is damaged (wanted an object, got {type(value).__name__})")
    return value
