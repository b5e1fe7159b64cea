"""What a run folder may hold: folders and plain files, so that nothing leads out of it.

A run may come from a stranger. Through a symbolic link in it this process would write or delete
what lies beyond, and at a named pipe it would wait forever. :func:`check_folder` refuses both
before a run is read or changed. Files that are changed in place are checked again when opened.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from noprop.errors import RunError
from noprop.files import open_regular

__all__ = ["check_file", "check_folder", "make_own_folder", "open_in_place", "read_object"]

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
