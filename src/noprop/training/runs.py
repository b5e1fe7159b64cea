"""A run is a folder: configuration, environment, metrics, checkpoints, the finished model.

Any process that finds the folder can go on with it, and reading it executes nothing.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from noprop.build import (
    RunData,
    Task,
    build_embedding,
    build_method,
    choose_device,
    use_bf16,
)
from noprop.config import RunConfig, from_toml, to_mapping, to_toml
from noprop.data import Examples, Normalization
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.methods.base import Method
from noprop.training.checkpoint import (
    check_fingerprint,
    flatten,
    load_tensors,
    save_tensors,
    unflatten,
    write_whole,
)
from noprop.training.workers import Job, checkpoint_path, groups_of, train_groups, worker_count

__all__ = [
    "Model",
    "commit_of_package",
    "create_run",
    "fingerprint",
    "load_model",
    "open_run",
    "read_metrics",
    "save_model",
    "train_run",
    "training_cost",
]

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Model:
    """A trained method and what it needs to read raw inputs."""

    config: RunConfig
    task: Task
    method: Method
    device: torch.device
    bf16: bool


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


def open_run(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        RunError: If the folder is no run.
    """
    if not (folder / "config.toml").is_file():
        what = "has no config.toml" if folder.is_dir() else "there is no such folder"
        raise RunError(f"{folder}: is no run folder: {what}")
    return from_toml(folder / "config.toml")


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

    Where the examples lie, which device and how many workers train, and how the result is read
    change nothing, so a run may go on with others.
    """
    mapping = to_mapping(config)
    for name in ("recipe", "data", "evaluation"):
        mapping.pop(name)
    for name in ("device", "workers", "checkpoint_every"):
        mapping["train"].pop(name)
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
        tensors, _ = load_tensors(checkpoint_path(folder, group))
        kinds = {"optimizer", "shared-optimizer"}
        state |= {n: v for n, v in tensors.items() if not kinds & set(n.split("/")[:2])}
    model = _empty_model(config, task, factory)
    _load_weights(model, state, folder)
    return model


def _empty_model(config: RunConfig, task: Task, factory: EncoderFactory | None) -> Model:
    device = choose_device(config.train.device)
    embedding = build_embedding(config, task, None)
    method = build_method(config, task, embedding, factory=factory)
    return Model(config, task, method, device, use_bf16(config.train.precision, device))


def _load_weights(model: Model, tensors: dict[str, Any], source: Path) -> None:
    if unused := sorted(tensors.keys() - _weights_of(model.method).keys()):
        raise RunError(
            f"{source}: holds the weights of another architecture: {unused[0]} has no place in "
            "that of config.toml"
        )
    try:
        model.method.shared.load_state_dict(unflatten("shared", tensors))
        for unit in model.method.units:
            unit.module.load_state_dict(unflatten(f"{unit.name}/module", tensors))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise RunError(f"{source}: holds the weights of another architecture: {first}") from None
    for module in (model.method.shared, *(u.module for u in model.method.units)):
        module.to(model.device).eval()
        if model.config.train.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _weights_of(method: Method) -> dict[str, Any]:
    tensors = flatten("shared", method.shared.state_dict())
    for unit in method.units:
        tensors |= flatten(f"{unit.name}/module", unit.module.state_dict())
    return tensors


def save_model(folder: Path, model: Model) -> None:
    """Write ``model.safetensors`` and ``model.json``: all that prediction needs."""
    save_tensors(folder / "model.safetensors", _weights_of(model.method), {"format": 1})
    weights = model.method.path_weights
    about = {
        "format": 1,
        "shape": model.task.shape,
        "class_names": model.task.class_names,
        "dtype": model.task.dtype,
        "normalization": asdict(model.task.normalization),
        "path_weights": None if weights is None else weights.tolist(),
    }
    write_whole(folder / "model.json", json.dumps(about, indent=1).encode())


def load_model(
    folder: Path, *, device: str | None = None, factory: EncoderFactory | None = None
) -> Model:
    """The finished model of a run.

    Args:
        folder: the run.
        device: another device than it was trained on.
        factory: the user's own encoder, where it was trained with one; a run never names code.

    Raises:
        RunError: If the folder is no run, or its training has not finished.
    """
    config = open_run(folder)
    path = folder / "model.json"
    if not path.exists():
        raise RunError(
            f"{folder}: is not trained to its end; go on with noprop train --resume {folder}"
        )
    try:
        about = json.loads(path.read_text())
        _check_description(about)
        normal = Normalization(*(tuple(about["normalization"][k]) for k in ("mean", "std")))
        task = Task(tuple(about["shape"]), tuple(about["class_names"]), normal, about["dtype"])
        weights = None if about["path_weights"] is None else torch.tensor(about["path_weights"])
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    if device or config.train.device.startswith(("cuda", "mps")):
        from noprop.config import replace

        wanted = device or _still_here(config.train.device)
        config = replace(config, {"train.device": wanted})
    model = _empty_model(config, task, factory)
    _load_weights(
        model, load_tensors(folder / "model.safetensors")[0], folder / "model.safetensors"
    )
    if trouble := _misfit(weights, model.method.path_weights):
        raise RunError(f"{path}: is damaged (path_weights {trouble})")
    model.method.path_weights = weights
    return model


def _check_description(about: dict[str, Any]) -> None:
    """Refuse what no data set can have told of itself.

    Raises:
        ValueError: With the field of ``model.json`` and what is wrong with it.
    """
    shape, names, normalization = (about[k] for k in ("shape", "class_names", "normalization"))
    if not shape or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"shape is {shape}, wanted numbers of at least 1")
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be texts, and at least one")
    if about["dtype"] not in ("uint8", "float32"):
        raise ValueError(f"dtype is {about['dtype']}, wanted uint8 or float32")
    for key in ("mean", "std"):
        values = normalization[key]
        if len(values) != shape[0]:
            raise ValueError(f"{key} has {len(values)} numbers, wanted {shape[0]}")
        if not all(isinstance(v, float) and math.isfinite(v) for v in values):
            raise ValueError(f"{key} must be finite numbers")
    if not all(v > 0 for v in normalization["std"]):
        raise ValueError("std must be above 0")


def _misfit(weights: torch.Tensor | None, uniform: torch.Tensor | None) -> str | None:
    """What keeps path weights from being those of a method that begins with ``uniform``."""
    if weights is None or uniform is None:
        return None if weights is uniform else "are for a method with a path, and for no other"
    if weights.shape != uniform.shape:
        return f"have shape {tuple(weights.shape)}, wanted {tuple(uniform.shape)}"
    if not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-3:
        return "must be at least 0 and sum to 1"
    return None


def _still_here(device: str) -> str:
    """The device a model was trained on, or ``auto`` on a machine without it."""
    present = torch.cuda.is_available() if device.startswith("cuda") else False
    return device if present else "auto"


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
