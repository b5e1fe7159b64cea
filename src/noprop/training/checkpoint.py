"""Checkpoints and other files of a run: written whole, read without executing anything.

A checkpoint is one safetensors file: tensors by dotted name, and a JSON object in its header. It is
written under a temporary name, flushed to the disk and renamed, so that a process killed at any
moment leaves the last good one. The header also has a digest of all the rest, by which a file that
was altered on the disk is told, and the version of the package.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from noprop.errors import RunError
from noprop.files import write_whole
from noprop.version import __version__

__all__ = [
    "DamagedError",
    "check_fingerprint",
    "check_name",
    "flatten",
    "load_tensors",
    "read_about",
    "save_tensors",
    "unflatten",
]


class DamagedError(RunError):
    """A file that is not what was written."""


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    before: Path | None = None,
    checked: bool = True,
) -> None:
    """Write tensors and a JSON object, to which the version is added, as one safetensors file.

    Args:
        path: the file.
        tensors: by name.
        about: what is said of them.
        before: a name for the file that was there.
        checked: whether it has a digest, which takes a second for about a gigabyte.
    """
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    said = {**about, "version": __version__}
    digest = _digest(plain, json.dumps(said)) if checked else ""
    # In one entry: safetensors writes several in any order, and equal content would differ.
    metadata = {"noprop": json.dumps([said, digest])}
    write_whole(path, save(plain, metadata=metadata), before)


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the JSON object.

    Raises:
        DamagedError: If the file is missing, truncated, altered, or none of this package.
        RunError: If it cannot be read.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        about, digest = _said(file)
        if digest and digest != _digest(tensors, json.dumps(about)):
            raise ValueError("its content is not what was written")
        return tensors, about


def read_about(path: Path) -> dict[str, Any]:
    """The JSON object alone, without the tensors.

    Raises:
        RunError: As :func:`load_tensors` does.
    """
    with _opened(path) as file:
        return _said(file)[0]


def _said(file: Any) -> tuple[dict[str, Any], str]:
    """The JSON object of a file, and its digest: empty where it has none, as before there were."""
    said = json.loads((file.metadata() or {})["noprop"])
    about, digest = said if isinstance(said, list) else (said, "")
    if not isinstance(about, dict):
        raise ValueError("its header holds no object")
    for name, (wanted, is_right) in FIELDS.items():
        if name in about and not is_right(about[name]):
            raise ValueError(f"{name} in its header must be {wanted}")
    if {"position", "total"} <= about.keys() and about["position"] > about["total"]:
        raise ValueError("position in its header is above total")
    return about, digest


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_positions(value: Any) -> bool:
    """Of units by name. They become names of files, which must not lead out of their folder."""
    return isinstance(value, dict) and all(
        re.fullmatch(r"[a-z]+(-[0-9]+)?", name) and _is_count(position)
        for name, position in value.items()
    )


# What a header may hold, which may come from a stranger: in words, and as a test.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("position", "total", "epoch"), ("a count", _is_count)),
    "seconds": (
        "a number of at least 0",
        lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    ),
    "fingerprint": ("a text", lambda value: isinstance(value, str)),
    "version": (
        "a version",
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]{1,40}", value)),
    ),
    "waiting": ("positions of units by name", _are_positions),
}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with open(path, "rb"):  # safe_open says of whatever it may not open that it is not there
            pass
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise DamagedError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        words = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path}: is damaged or no checkpoint of noprop ({words})") from None
    except RecursionError:
        raise DamagedError(f"{path}: is damaged (its header is nested too deeply)") from None


def check_name(folder: Path) -> None:
    """Refuse a folder whose name is not UTF-8, which safetensors cannot open.

    Raises:
        RunError: With the name.
    """
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:
        raise RunError(f"{folder}: wanted a run folder with a name in UTF-8; rename it") from None


def check_fingerprint(path: Path, about: Mapping[str, Any], mark: str) -> None:
    """Refuse a checkpoint whose weights came of other settings or data, or of another version.

    Raises:
        RunError: If the fingerprint in its header is not ``mark``, or the version not this one.
    """
    if about.get("version") != __version__:
        raise RunError(
            f"{path}: was written by noprop {about.get('version', 'of an earlier version')}, this "
            f"is {__version__}; go on with that version, or begin a run of its own"
        )
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
                if isinstance(table, Tensor):
                    raise ValueError(f"{name} is inside another tensor")
            table[last] = value
    return state
