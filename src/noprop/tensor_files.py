"""Files of tensors: written atomically, read without executing any code.

The format is safetensors: tensors by name, and a JSON object in the header, to which the version of
the package is added. Unless the digest is kept elsewhere, the header also holds a digest of the
content, so that a file altered on the disk is recognised.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from noprop.errors import DamagedError, RunError
from noprop.files import open_regular, write_whole
from noprop.version import __version__

__all__ = [
    "check_utf8_name",
    "encode",
    "flatten",
    "load_tensors",
    "read_header",
    "save_tensors",
    "unflatten",
]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object, with a digest of both, as one safetensors file.

    Args:
        path: The file to write or replace.
        tensors: Tensors by name.
        header: The JSON object; the version of the package is added.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    write_whole(path, encode(tensors, header))


def encode(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, digest: bool = True
) -> bytes:
    """Return the content of a file of tensors.

    Args:
        tensors: Tensors by name.
        header: A JSON object; the version of the package is added.
        digest: Whether to add a digest, which takes about one second per gigabyte.
    """
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    said = {**header, "version": __version__}
    own = _digest(plain, json.dumps(said)) if digest else ""
    # In one entry: safetensors writes several in random order, and equal content would differ.
    return save(plain, metadata={"noprop": json.dumps([said, own])})


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the JSON object of a file.

    Raises:
        DamagedError: If the file is missing, truncated, altered, or not of this package.
        RunError: If it cannot be read.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        about, digest = _said(file)
        if digest and digest != _digest(tensors, json.dumps(about)):
            raise ValueError("its content is not what was written")
        return tensors, about


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file without reading its tensors.

    Raises:
        RunError: As :func:`load_tensors` does.
    """
    with _opened(path) as file:
        return _said(file)[0]


def _said(file: Any) -> tuple[dict[str, Any], str]:
    """Return the JSON object of an open file, and its digest or an empty string."""
    about, digest = json.loads((file.metadata() or {})["noprop"])
    if not isinstance(about, dict):
        raise ValueError("its header holds no object")
    return about, digest


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        open_regular(path).close()  # safe_open reports any file it may not open as missing
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise DamagedError(f"{path}: checkpoint does not exist") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        words = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path}: is damaged, or not a checkpoint of noprop ({words})") from None
    except RecursionError:
        raise DamagedError(f"{path}: is damaged (its header is nested too deeply)") from None


def check_utf8_name(folder: Path) -> None:
    """Refuse a folder whose name is not UTF-8, which safetensors cannot open.

    Raises:
        RunError: If the name is not UTF-8.
    """
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:
        raise RunError(f"{folder}: wanted a run folder with a name in UTF-8; rename it") from None


def flatten(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return nested dictionaries of tensors as one dictionary, with keys joined by ``/``."""
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
    """Return the nested dictionaries that :func:`flatten` flattened, with tensors as leaves."""
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
