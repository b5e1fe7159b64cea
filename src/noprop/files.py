"""Files and folders: only regular files are opened, reads are limited in size, writes are atomic.

A run may come from an untrusted source. Through a symbolic link in it this process would write or
delete files outside the run, and on a named pipe it would block forever. :func:`check_folder`
refuses both before a run is read or changed. Files that are changed in place are checked again when
opened.
"""

import contextlib
import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from noprop.errors import DamagedError, RunError

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

FREE_BYTES = 1 << 26  # 64 MiB of uint8 images become 256 MiB of float32, and twice that when split
RATIO = 100  # MNIST's images are compressed 5 times; only bombs and blank images reach 1000


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; refuse pipes, sockets and devices, which may never end.

    Raises:
        OSError: If the file does not exist, or is not a regular one.
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
    """Open a file without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def may_unpack(unpacked: int, packed: int) -> bool:
    """Return whether a file of ``packed`` bytes may unpack to ``unpacked`` bytes.

    A file of a kilobyte can claim to hold terabytes. The limit is 64 MiB, or a hundred times the
    size of the file if that is more.
    """
    return unpacked <= max(FREE_BYTES, RATIO * packed)


def write_whole(path: Path, content: bytes, before: Path | None = None) -> None:
    """Write or replace a file atomically: readers see the old content or the new.

    Args:
        path: The file to write or replace.
        content: The new content.
        before: Name under which to keep the replaced file. The folder is then flushed to the disk
            as well, so that both names survive a loss of power.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a new file, never the target of a link
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


DEPTH = 16  # nested folders; a run has four
# Bytes of a JSON file: 10,000 class names of 255 characters need at most 15 MB.
LARGEST = 1 << 25
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def check_folder(folder: Path) -> None:
    """Check that a folder, or the folder that a link names, holds only folders and regular files.

    Raises:
        RunError: If it holds anything else, which the message names.
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
        except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile, or no folder at all
            continue
        except OSError as error:
            raise RunError(f"{place}: cannot be read: {error.strerror or error}") from None
        if depth == DEPTH:
            raise RunError(f"{folder}: holds more than {DEPTH} nested folders")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "is a symbolic link, which a run folder must not hold"
    return "is neither a file nor a folder"


def make_own_folder(path: Path) -> None:
    """Make a folder that only this user can access, or check that an existing one is this user's.

    Raises:
        RunError: If it is a link, a file, or another user's folder.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be made: {error.strerror or error}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RunError(f"{path}: is a link, or a folder of another user; remove it")


def open_in_place(path: Path, flags: int) -> int:
    """Open or create a file that is changed in place, without following links.

    Other files of a run are replaced as a whole, which leaves other hard links to them unchanged.

    Raises:
        RunError: If it is not a regular file, or has other hard links.
    """
    check_file(path)
    file = os.open(path, flags | os.O_CREAT | NO_FOLLOW, 0o666)
    if os.fstat(file).st_nlink > 1:
        os.close(file)
        raise _shared(path)
    return file


def check_file(path: Path) -> None:
    """Check that a file that is changed in place is absent, or a regular file with one hard link.

    Raises:
        RunError: If it is not.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{path}: is not a regular file")
    if status.st_nlink > 1:
        raise _shared(path)


def _shared(path: Path) -> RunError:
    return RunError(
        f"{path}: is a hard link, and another file would change with it; replace it by a copy"
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run.

    Raises:
        DamagedError: If it is missing, or does not hold a JSON object.
        RunError: If it cannot be read.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise DamagedError(f"{path}: is damaged (it has more than {LARGEST >> 20} MiB)")
        value = json.loads(content.decode())
    except FileNotFoundError:
        raise DamagedError(f"{path}: cannot be read: No such file or directory") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise DamagedError(f"{path}: is damaged (nested too deeply)") from None
    except ValueError as error:
        raise DamagedError(f"{path}: is damaged ({error})") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: is damaged (wanted an object, got {type(value).__name__})")
    return value
