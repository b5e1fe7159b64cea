"""A trained method on disk: all that prediction needs, read without executing any code.

``config.toml`` describes the method and ``model.safetensors`` holds its weights. ``model.json``
holds what comes from the data: shapes, names, input statistics and weights of the path average.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from noprop.build import Task, build_embedding, build_method, choose_device, use_bf16
from noprop.config import RunConfig, from_mapping, from_toml, inference_fields, replace, to_mapping
from noprop.data import Normalization
from noprop.data.arrays import MAX_CLASSES
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, RunError
from noprop.files import check_folder, read_object, write_whole
from noprop.fingerprint import difference
from noprop.methods.base import Method
from noprop.tensor_files import (
    check_utf8_name,
    flatten,
    load_tensors,
    read_header,
    save_tensors,
    unflatten,
)

__all__ = [
    "Model",
    "empty_model",
    "load_model",
    "load_weights",
    "open_run",
    "ready",
    "save_model",
]


@dataclass
class Model:
    """A trained method, and the task that describes its raw inputs."""

    config: RunConfig
    task: Task
    method: Method
    device: torch.device
    bf16: bool


def open_run(folder: Path) -> RunConfig:
    """Return the configuration of a run folder.

    Raises:
        RunError: If the folder is not a run, or holds links or special files.
    """
    check_utf8_name(folder)
    try:
        os.lstat(folder / "config.toml")
    except (FileNotFoundError, NotADirectoryError):
        what = "it has no config.toml" if folder.is_dir() else "it does not exist"
        raise RunError(f"{folder}: is not a run folder: {what}") from None
    check_folder(folder)  # only a run: other folders may hold links, and be large
    return from_toml(folder / "config.toml")


def load_model(
    folder: Path,
    *,
    device: str | None = None,
    factory: EncoderFactory | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Model:
    """Load the finished model of a run.

    Args:
        folder: Folder of the run.
        device: Device to load it on; the one it was trained on unless given.
        factory: User's own encoder, if it was trained with one; a run never names code.
        changes: New values of :func:`inference_fields`. If they change the number of steps that the
            path average weights, its fitted weights are replaced by uniform ones.

    Raises:
        RunError: If the folder is not a run, or its training has not finished.
        ConfigError: If a field cannot change after training.
    """
    config = open_run(folder)
    path, weights_path = folder / "model.json", folder / "model.safetensors"
    if not path.exists():
        raise RunError(
            f"{folder}: training has not finished; resume it with noprop train --resume {folder}"
        )
    about = read_object(path)
    try:
        _check_description(about)
        normal = Normalization(*(tuple(about["normalization"][k]) for k in ("mean", "std")))
        task = Task(tuple(about["shape"]), tuple(about["class_names"]), normal, about["dtype"])
        weights = None if about["path_weights"] is None else torch.tensor(about["path_weights"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    _check_trained_with(config, about, weights_path)
    if device or config.train.device.startswith(("cuda", "mps")):
        wanted = device or _still_here(config.train.device)
        config = replace(config, {"train.device": wanted})
    model = empty_model(config, task, factory)
    load_weights(model, load_tensors(weights_path)[0], weights_path)
    if trouble := _misfit(weights, model.method.path_weights):
        raise RunError(f"{path}: is damaged (path_weights {trouble})")
    model.method.path_weights = weights
    return _read_otherwise(model, changes, factory, path) if changes else model


LARGEST = 2**26  # numbers per example


def _check_description(about: dict[str, Any]) -> None:
    """Check the fields of ``model.json`` that describe the data.

    Raises:
        ValueError: If a field has a value that no data set can have.
    """
    shape, names, normalization = (about[k] for k in ("shape", "class_names", "normalization"))
    if not shape or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"shape is {shape!r}, wanted numbers of at least 1")
    if math.prod(shape) > LARGEST:
        raise ValueError(f"shape is {shape}, wanted at most {LARGEST} numbers an example")
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be texts, and at least one")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"class_names has {len(names)} names, wanted at most {MAX_CLASSES:,}")
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


def _check_trained_with(config: RunConfig, about: dict[str, Any], weights: Path) -> None:
    """Check that ``config.toml`` and ``model.json`` were not altered after training.

    The file of the weights holds copies of both; older files without copies are not checked. Fields
    that do not affect weights may change, such as folders of data and settings of inference.

    Raises:
        RunError: If one was altered; the message names the field.
    """
    folder, header = weights.parent, read_header(weights)
    trained = header.get("config")
    if isinstance(trained, dict):
        if found := difference(config, from_mapping(trained, f"{weights}: config")):
            name, now, then = found
            raise RunError(
                f"{folder / 'config.toml'}: {name} is {now}, but the model was trained with "
                f"{then}; restore it, or train another run"
            )
    written = header.get("model")
    for name, value in written.items() if isinstance(written, dict) else ():
        if about.get(name) != value:
            raise RunError(
                f"{folder / 'model.json'}: {name} was changed after training; write the file again "
                f"with noprop assemble {folder}"
            )


def _misfit(weights: torch.Tensor | None, uniform: torch.Tensor | None) -> str | None:
    """Return why path weights do not fit a method that starts with ``uniform``, or None."""
    if weights is None or uniform is None:
        return (
            None
            if weights is uniform
            else "must be given for methods with a path, and only for them"
        )
    if weights.shape != uniform.shape:
        return f"have shape {tuple(weights.shape)}, wanted {tuple(uniform.shape)}"
    if not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-3:
        return "must be at least 0 and sum to 1"
    return None


def _still_here(device: str) -> str:
    """Return the device that a model was trained on, or ``auto`` on a machine without it."""
    present = torch.cuda.is_available() if device.startswith("cuda") else False
    return device if present else "auto"


def _read_otherwise(
    model: Model, changes: Mapping[str, Any], factory: EncoderFactory | None, source: Path
) -> Model:
    """Return a model with the same weights and other settings of inference."""
    free = inference_fields(model.config)
    for name in changes:
        if name not in free:
            raise ConfigError(
                f"{name}: cannot change after training, or is not a field of method "
                f"{model.config.method.name}; these can: {', '.join(free)}"
            )
    other = empty_model(replace(model.config, changes), model.task, factory)
    load_weights(other, _weights_of(model.method), source)
    fitted, uniform = model.method.path_weights, other.method.path_weights
    if fitted is not None and uniform is not None and fitted.shape == uniform.shape:
        other.method.path_weights = fitted
    return other


def save_model(folder: Path, model: Model) -> None:
    """Write ``model.safetensors`` and ``model.json``."""
    weights = model.method.path_weights
    about = {
        "format": 1,
        "shape": model.task.shape,
        "class_names": model.task.class_names,
        "dtype": model.task.dtype,
        "normalization": asdict(model.task.normalization),
        "path_weights": None if weights is None else weights.tolist(),
    }
    header = {"format": 1, "config": to_mapping(model.config), "model": about}
    save_tensors(folder / "model.safetensors", _weights_of(model.method), header)
    write_whole(folder / "model.json", json.dumps(about, indent=1).encode())


def _weights_of(method: Method) -> dict[str, Any]:
    tensors = flatten("shared", method.shared.state_dict())
    for unit in method.units:
        tensors |= flatten(f"{unit.name}/module", unit.module.state_dict())
    return tensors


def empty_model(config: RunConfig, task: Task, factory: EncoderFactory | None) -> Model:
    """Build the method of a configuration, without loading weights."""
    device = choose_device(config.train.device)
    embedding = build_embedding(config, task, None)
    method = build_method(config, task, embedding, factory=factory)
    return Model(config, task, method, device, use_bf16(config.train.precision, device))


def load_weights(model: Model, tensors: dict[str, Any], source: Path) -> None:
    """Load weights into a model, and make it ready to predict on its device.

    Raises:
        RunError: If they are of another architecture; the message names ``source``.
    """
    if unused := sorted(tensors.keys() - _weights_of(model.method).keys()):
        raise RunError(
            f"{source}: holds the weights of another architecture: config.toml has no {unused[0]}"
        )
    try:
        model.method.shared.load_state_dict(unflatten("shared", tensors))
        for unit in model.method.units:
            unit.module.load_state_dict(unflatten(f"{unit.name}/module", tensors))
    except (RuntimeError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise RunError(f"{source}: holds the weights of another architecture: {first}") from None
    ready(model)


def ready(model: Model) -> None:
    """Move a model's modules to its device and memory format, and to evaluation mode."""
    for module in (model.method.shared, *(u.module for u in model.method.units)):
        module.to(model.device).eval()
        if model.config.train.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
