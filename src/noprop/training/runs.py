"""A run is a folder: configuration, environment, metrics, checkpoints, the finished model.

Any process that finds the folder can go on with it, and reading it executes nothing.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from noprop.build import (
    RunData,
    Task,
    build_embedding,
    choose_device,
    use_bf16,
)
from noprop.config import RunConfig, reading_fields, to_mapping, to_toml
from noprop.data import Examples
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.training.checkpoint import (
    check_fingerprint,
    load_tensors,
    save_tensors,
    write_whole,
)
from noprop.training.model import Model, empty_model, load_weights
from noprop.training.offload import whole_checkpoint
from noprop.training.workers import Job, checkpoint_path, groups_of, train_groups, worker_count

__all__ = [
    "commit_of_package",
    "create_run",
    "fingerprint",
    "read_metrics",
    "train_run",
    "training_cost",
]

Emit = Callable[[dict[str, Any]], None]


def create_run(folder: Path, config: RunConfig, embedding: Embedding | None = None) -> None:
    """Make a run folder: it is one as soon as ``config.toml`` is there, which is written first.

    A folder is taken that is empty, or holds no more than a process left that was killed in here.

    Args:
        folder: the run.
        config: its configuration.
        embedding: W_Embed before training, where it is made already.

    Raises:
        RunError: If it is there already, or cannot be made.
    """
    environment = json.dumps(_environment(config), indent=1).encode()
    taken = RunError(
        f"{folder}: is there already; continue it with --resume {folder}, or name another"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_free(folder):
            raise taken
    except FileExistsError:
        raise taken from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror or error}") from None
    with _alone(folder):
        if not _is_free(folder):  # another process was faster
            raise taken
        write_whole(folder / "config.toml", to_toml(config).encode())
        write_whole(folder / "environment.json", environment)
        if embedding is not None:
            save_tensors(folder / "embedding.safetensors", embedding.state_dict(), {})


def _is_free(folder: Path) -> bool:
    """Whether nothing is in a folder but what :func:`create_run` leaves before ``config.toml``."""
    ours = re.compile(r"\.lock|\.config\.toml\.\d+\.tmp")
    return all(ours.fullmatch(entry.name) for entry in folder.iterdir())


def train_run(
    folder: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit,
    factory: EncoderFactory | None = None,
) -> Model:
    """Train what is not trained yet, and put the finished model together.

    Args:
        folder: the run.
        config: its configuration; ``train.workers`` may differ from an earlier call.
        data: its data.
        emit: called with every event, after it is written to ``metrics.jsonl``.
        factory: a user's own encoder.

    Raises:
        RunError: If another process is training this run, or the folder cannot be used.
    """
    with _alone(folder):
        return _train(folder, config, data, emit, factory)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run; the system lets go of it when this process ends, however it ends."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is training this run") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _train(
    folder: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit,
    factory: EncoderFactory | None,
) -> Model:
    for half_written in folder.rglob(".*.tmp"):  # by a process that was killed
        half_written.unlink(missing_ok=True)
    embedding = _starting_embedding(folder, config, data)
    packed = folder / ".data.safetensors"
    parts = {"train": data.train, "validation": data.validation}
    mark = fingerprint(config, data.train)
    tensors = {
        f"{name}/{axis}": getattr(part, axis) for name, part in parts.items() for axis in "xy"
    }
    save_tensors(packed, {**tensors, "embedding": embedding.weight}, {})
    job = Job(config, data.task, folder, packed, mark, factory)
    groups = groups_of(config)
    try:
        with _metrics(folder, emit) as record:
            left = []
            for group in groups:
                if _is_finished(folder, group, mark):
                    record({"event": "found", "group": group})
                else:
                    left.append(group)
            workers = worker_count(config, len(left))
            record({"event": "started", "groups": left, "workers": workers})
            train_groups(job, left, workers, record)
    finally:
        packed.unlink(missing_ok=True)
    return _assemble(folder, config, data.task, factory)


def _starting_embedding(folder: Path, config: RunConfig, data: RunData) -> Any:
    """W_Embed before training; prototypes are searched once a run."""
    path = folder / "embedding.safetensors"
    if path.exists():
        embedding = build_embedding(config, data.task, None)
        try:
            embedding.load_state_dict(load_tensors(path)[0])
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise RunError(f"{path}: holds embeddings of another kind: {first}") from None
        return embedding
    embedding = build_embedding(config, data.task, data.train)
    save_tensors(path, embedding.state_dict(), {})
    return embedding


def fingerprint(config: RunConfig, train: Examples) -> str:
    """A digest of all that a unit's weights depend on: its settings, and the training examples.

    Where the examples lie, which device and how many workers train, where blocks wait, and how the
    result is read change nothing, so a run may go on with others. (With another ``train.offload``
    only once it is trained, for the checkpoints are of another form.)
    """
    mapping = to_mapping(config)
    for name in ("recipe", "data", "evaluation"):
        mapping.pop(name)
    for name in ("device", "workers", "checkpoint_every", "offload"):
        mapping["train"].pop(name)
    for name in reading_fields(config):
        section, _, field = name.partition(".")
        mapping.get(section, {}).pop(field, None)
    digest = hashlib.blake2b(json.dumps(mapping, sort_keys=True).encode(), digest_size=16)
    for part in (train.x, train.y):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _is_finished(folder: Path, group: str, mark: str) -> bool:
    path = checkpoint_path(folder, group)
    if not path.exists():
        return False
    about = load_tensors(path)[1]
    check_fingerprint(path, about, mark)
    return "position" in about and about["position"] == about.get("total")


def _assemble(folder: Path, config: RunConfig, task: Task, factory: EncoderFactory | None) -> Model:
    """The model out of the groups' checkpoints."""
    state: dict[str, Any] = {}
    for group in groups_of(config):
        for tensors in whole_checkpoint(checkpoint_path(folder, group)):
            kinds = {"optimizer", "shared-optimizer"}
            state |= {n: v for n, v in tensors.items() if not kinds & set(n.split("/")[:2])}
    model = empty_model(config, task, factory)
    load_weights(model, state, folder)
    return model


@contextmanager
def _metrics(folder: Path, emit: Emit) -> Iterator[Emit]:
    """Append every event but mere progress to ``metrics.jsonl``, one JSON object a line."""
    path = folder / "metrics.jsonl"

    def record(event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            line = json.dumps({"time": round(time.time(), 3), **event}) + "\n"
            try:  # opened anew: an error of whoever listens, or trains, is not this file's
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                reason = error.strerror or error
                raise RunError(f"{path}: cannot be written: {reason}") from None
        emit(event)

    yield record


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All events of a run; a line cut short by a kill is left out."""
    events = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def training_cost(folder: Path) -> dict[str, Any]:
    """What training took: seconds summed over the groups, and the peak memory of the largest.

    Each group's seconds are those of all the processes that had it; empty without such events.
    """
    events = [e for e in read_metrics(folder) if e.get("event") == "trained"]
    if not events or any("peak_memory_mb" not in e for e in events):
        return {}
    largest = max(events, key=lambda e: e["peak_memory_mb"])
    return {
        "seconds": sum(e["seconds"] for e in events),
        "peak_memory_mb": largest["peak_memory_mb"],
        "memory_counter": largest["memory_counter"],
    }


def _environment(config: RunConfig) -> dict[str, Any]:
    return {
        "noprop": version("noprop"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": str(choose_device(config.train.device)),
        "bf16": use_bf16(config.train.precision, choose_device(config.train.device)),
        "seed": config.train.seed,
        "commit": commit_of_package(),
    }


def commit_of_package(file: Path = Path(__file__)) -> str | None:
    """The commit of the package's own checkout, with ``-dirty`` where a tracked file has changed.

    None where git does not track ``file``: a repository that encloses an installed copy, such as
    that of a user's work, says nothing about the package.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
