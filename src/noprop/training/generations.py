"""A group's checkpoint and the one before it: what is damaged on the disk does not end a training.

A new checkpoint takes the place of ``checkpoint.safetensors``, and that of
``checkpoint.previous.safetensors``. Both are renamed when the new one is on the disk, so that a
process killed at any moment leaves one at least. Each carries a digest of its content; whoever
reads finds what was cut short or altered, and takes the one before.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from noprop.errors import RunError
from noprop.training.checkpoint import DamagedError, save_tensors

__all__ = ["Generation", "newest", "previous_of", "promote", "save_generation"]

Content = TypeVar("Content")


@dataclass(frozen=True)
class Generation(Generic[Content]):
    """What was read of a checkpoint.

    Attributes:
        content: of the file.
        path: the file.
        trouble: what is wrong with the one after it; empty if this is the last one.
    """

    content: Content
    path: Path
    trouble: str = ""


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the last one is."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_generation(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint, and keep the one before it.

    Raises:
        RunError: If the disk is full or the folder cannot be written; those that were are there.
    """
    try:
        save_tensors(path, tensors, about, before=previous_of(path))
    except RunError as error:
        kept = path.exists() or previous_of(path).exists()
        raise RunError(f"{error}" + "; the last good checkpoint is kept" * kept) from None


def newest(path: Path, read: Callable[[Path], Content]) -> Generation[Content] | None:
    """The last checkpoint that is whole; None if there is none at all.

    Args:
        path: of the last one.
        read: reads one, and raises :class:`DamagedError` if it is not whole.

    Raises:
        DamagedError: If none is whole; the message says what to delete.
    """
    troubles: list[DamagedError] = []
    for file in (path, previous_of(path)):
        if not file.exists():
            continue
        try:
            return Generation(read(file), file, str(troubles[0]) if troubles else "")
        except DamagedError as error:
            troubles.append(error)
    if not troubles:
        return None
    other = f"and so is {previous_of(path).name}" if len(troubles) > 1 else "and is the only one"
    raise DamagedError(f"{troubles[0]}, {other}; delete {path.parent} to train it anew")


def promote(path: Path) -> None:
    """Make the checkpoint before the last one the last, in place of one that is damaged.

    Or the next to be written would put the damaged one in the place of the good one.
    """
    try:
        os.replace(previous_of(path), path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None
