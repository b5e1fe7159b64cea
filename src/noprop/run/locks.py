"""Locks of a run: one for each group of units, one for its folder, one for putting it together.

The system releases a lock when the process that holds it ends, however it ends. The process that
trains a group holds the group's lock, so no other joins a worker that outlives its parent. A file
of a run is written under the lock of its folder; a half-written one that is found under that lock
was left by a process that has ended.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from noprop.errors import RunError
from noprop.files import check_file

__all__ = ["BusyError", "hold", "hold_assembly", "hold_folder", "is_free", "remove_half_written"]

PATIENCE = 30.0  # seconds; the folder's lock is held for a few files' writing


class BusyError(RunError):
    """Another process holds the lock."""


@contextmanager
def hold(path: Path, taken: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: File of the lock.
        taken: Message of the error if another process holds it.
        patience: Seconds to wait for it.

    Raises:
        BusyError: If another process holds it.
        RunError: If the folder cannot be written, or the file is a link.
    """
    lock, deadline = FileLock(path, timeout=0), time.monotonic() + patience
    while True:
        try:
            check_file(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            break
        except Timeout:
            if time.monotonic() >= deadline:
                raise BusyError(taken) from None
            time.sleep(0.02)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None
        except NotImplementedError as error:
            raise RunError(f"{path}: cannot be locked: {error}") from None
    try:
        yield
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Return whether no process holds a lock at this moment."""
    try:
        with hold(path, ""):
            return True
    except BusyError:
        return False


def hold_folder(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder for a moment: to make it, or to see what others have left in it."""
    return hold(folder / ".lock", f"{folder}: another process is making this run", PATIENCE)


def hold_assembly(folder: Path) -> AbstractContextManager[None]:
    """Hold what is made of all units: the model and its evaluation."""
    return hold(folder / ".assembly.lock", f"{folder}: another process is assembling this run")


def remove_half_written(folder: Path, *names: str) -> None:
    """Delete what a process that was killed had half written: of these files, or of all inside."""
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)
    for path in folder.rglob(".*.tmp") if not names else ():
        path.unlink(missing_ok=True)
