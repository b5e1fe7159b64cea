"""Checkpoints and other files of a run: written whole, read without executing anything.

A checkpoint is one safetensors file: tensors by dotted name, and a JSON object in its header. It is
written under a temporary name, flushed to the disk and renamed, so that a process killed at any
moment leaves the last good one.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from noprop.errors import RunError

__all__ = [
    "check_fingerprint",
    "flatten",
    "load_tensors",
    "read_about",
    "save_tensors",
    "unflatten",
    "write_whole",
]


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file at once: never half of it is there.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object as one safetensors file."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_whole(path, save(plain, metadata={"noprop": json.dumps(about)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the JSON object.

    Raises:
        RunError: If the file is missing, truncated, or no checkpoint of this package.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return tensors, json.loads((file.metadata() or {})["noprop"])


def read_about(path: Path) -> dict[str, Any]:
    """The JSON object alone, without the tensors.

    Raises:
        RunError: As :func:`load_tensors` does.
    """
    with _opened(path) as file:
        return json.loads((file.metadata() or {})["noprop"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with open(path, "rb"):  # safe_open says of whatever it may not open that it is not there
            pass
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path}: is damaged or no checkpoint of noprop ({error})") from None


def check_fingerprint(path: Path, about: Mapping[str, Any], mark: str) -> None:
    """Refuse a checkpoint whose weights came of other settings or other data.

    Raises:
        RunError: If the fingerprint in its header is not ``mark``.
    """
    if about.get("fingerprint") != mark:
        raise RunError(
            f"{path}: was trained with other settings or other data than this run now has; put "
            "them back, or begin a run of its own"
        )


def flatten(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Nested dictionaries of tensors as one flat dictionary; keys joined by ``/``."""
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= flatten(name, value)
        elif value is not None:
            flat[name] = torch.tensor(value)
    return flat


def unflatten(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What :func:`flatten` was given under ``prefix``, with every leaf a tensor."""
    state: dict[str, Any] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "/"):
            *path, last = name[len(prefix) + 1 :].split("/")
            table = state
            for part in path:
                table = table.setdefault(part, {})
            table[last] = value
    return state
