"""Checks of a model's files before its method is built: values out of range, and altered fields."""

import math
from pathlib import Path
from typing import Any

import torch

from noprop.config import RunConfig, from_mapping
from noprop.data.arrays import MAX_CLASSES
from noprop.errors import RunError
from noprop.fingerprint import difference
from noprop.tensor_files import read_header

__all__ = ["check_description", "check_trained_with", "misfit"]

LARGEST = 2**26  # numbers per example


def check_description(about: dict[str, Any]) -> None:
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
    if columns := about.get("columns"):
        if not all(isinstance(name, str) for name in columns) or [len(columns)] != list(shape):
            raise ValueError(f"columns must be texts, and {shape[0]}")
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


def check_trained_with(config: RunConfig, about: dict[str, Any], weights: Path) -> None:
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


def misfit(weights: torch.Tensor | None, uniform: torch.Tensor | None) -> str | None:
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
