"""A run is a folder: how it is made, what it belongs to, and a place in it for each process.

It holds configuration, environment, metrics, checkpoints and the finished model. Any process that
finds it can resume it, and reading it executes nothing.
"""

import itertools
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from noprop.build import build_embedding
from noprop.config import RunConfig, from_toml, to_toml
from noprop.embeddings import Embedding
from noprop.errors import RunError
from noprop.files import check_folder, write_whole
from noprop.fingerprint import difference
from noprop.machine import choose_device, commit_of_package, use_bf16
from noprop.run.initial import INITIAL, initial_bytes, start_embedding, tensors_of
from noprop.run.locks import hold, hold_folder, is_free, remove_half_written
from noprop.task import RunData
from noprop.tensor_files import check_utf8_name, load_tensors, save_tensors
from noprop.version import __version__

__all__ = [
    "SLURM_PLACE",
    "clear_places",
    "create_run",
    "join_run",
    "make_free_folder",
    "starting_embedding",
    "workplace",
]

PLACES = ".processes"
SLURM_PLACE = ".slurm"  # what submitit and Slurm write, until the model is assembled


def create_run(
    folder: Path,
    config: RunConfig,
    embedding: Embedding | None = None,
    initial: bytes | None = None,
) -> None:
    """Make a run folder; ``config.toml`` is written first, and makes a folder a run.

    The folder may exist if it is empty, or holds only what a killed process left.

    Args:
        folder: The run folder.
        config: Configuration of the run.
        embedding: W_Embed before training, where it is made already.
        initial: File that the run starts from, if it does not start from its seed.

    Raises:
        RunError: If it already exists, or cannot be made.
    """
    taken = RunError(f"{folder}: already exists; resume it with --resume {folder}, or name another")
    _make(folder, taken)
    if not _is_free(folder):
        raise taken
    check_folder(folder)
    with hold_folder(folder):
        if not _is_free(folder):  # another process was faster
            raise taken
        _fill(folder, config, embedding, initial)


def make_free_folder(name: str, parent: Path = Path("runs")) -> Path:
    """Make ``<parent>/<name>``, or the first of ``-2``, ``-3``, … that is absent, and return it.

    Making a folder that exists fails, so two processes never get the same one.

    Raises:
        RunError: If it cannot be made.
    """
    _make(parent, RunError(f"{parent}: is a file, wanted a folder to make {name} in"))
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{folder}: cannot be made: {error.strerror or error}") from None
        return folder
    raise AssertionError


def join_run(
    folder: Path,
    config: RunConfig,
    embedding: Embedding | None = None,
    initial: bytes | None = None,
) -> None:
    """Make a run folder, or check that the existing one was made for the same training.

    Args:
        folder: The run folder.
        config: Wanted configuration; fields that change no weight may differ from the folder's.
        embedding: W_Embed before training, where it is made already.
        initial: File that the run starts from, if it does not start from its seed.

    Raises:
        RunError: If it is the folder of another training, or of something else; the message names
            the first field that differs.
    """
    no_run = RunError(f"{folder}: already exists and is no run folder; name another")
    _make(folder, no_run)
    if not _is_free(folder) and not os.path.lexists(folder / "config.toml"):
        raise no_run
    check_folder(folder)
    with hold_folder(folder):
        if _is_free(folder):
            _fill(folder, config, embedding, initial)
        elif not (folder / "config.toml").is_file():
            raise no_run
        elif found := difference(from_toml(folder / "config.toml"), config):
            name, there, asked = found
            raise RunError(
                f"{folder}: is the run of another training: {name} is {there} in its config.toml, "
                f"{asked} was asked for"
            )


def _make(folder: Path, taken: RunError) -> None:
    check_utf8_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise taken from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror or error}") from None


def _is_free(folder: Path) -> bool:
    """Return whether a folder holds only what :func:`create_run` leaves before ``config.toml``."""
    initial = re.escape(INITIAL)
    ours = re.compile(rf"\.lock|{initial}|\.(config\.toml|{initial})\.\d+\.tmp")
    return all(ours.fullmatch(entry.name) for entry in folder.iterdir())


def _fill(
    folder: Path, config: RunConfig, embedding: Embedding | None, initial: bytes | None
) -> None:
    if initial is not None:  # before the folder is a run: without the file it could not start
        write_whole(folder / INITIAL, initial)
    write_whole(folder / "config.toml", to_toml(config).encode())
    environment = json.dumps(_environment(config), indent=1).encode()
    write_whole(folder / "environment.json", environment)
    if embedding is not None:
        save_tensors(folder / "embedding.safetensors", embedding.state_dict(), {})


def starting_embedding(folder: Path, config: RunConfig, data: RunData) -> Any:
    """W_Embed before training; prototypes are searched once a run."""
    path = folder / "embedding.safetensors"
    with hold_folder(folder):
        remove_half_written(folder, "config.toml", "environment.json", path.name, INITIAL)
        if not path.exists():
            embedding = build_embedding(config, data.task, data.train)
            start_embedding(embedding, tensors_of(initial_bytes(folder, config)))
            save_tensors(path, embedding.state_dict(), {})
            return embedding
    embedding = build_embedding(config, data.task, None)
    try:
        embedding.load_state_dict(load_tensors(path)[0])
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: holds embeddings of another kind: {first}") from None
    return embedding


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A folder in the run for this process alone, which goes with it.

    Those of processes that were killed are deleted.
    """
    places = folder / PLACES
    mine = places / secrets.token_hex(8)
    with ExitStack() as held:
        clear_places(folder)
        with hold_folder(folder):
            held.enter_context(hold(mine / ".lock", f"{mine}: is another process's"))
        try:
            yield mine
        finally:
            with suppress(RunError), hold_folder(folder):
                shutil.rmtree(mine, ignore_errors=True)
                with suppress(OSError):  # others are in there
                    places.rmdir()


def clear_places(folder: Path) -> None:
    """Delete the places of processes that were killed: a lock tells them from the living."""
    places = folder / PLACES
    with hold_folder(folder):
        for place in places.iterdir() if places.exists() else ():
            if is_free(place / ".lock"):
                shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # there is none, or the living are in there
            places.rmdir()


def _environment(config: RunConfig) -> dict[str, Any]:
    return {
        "noprop": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": str(choose_device(config.train.device)),
        "bf16": use_bf16(config.train.precision, choose_device(config.train.device)),
        "seed": config.train.seed,
        "commit": commit_of_package(),
    }
