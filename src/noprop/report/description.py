"""A run before it is trained: its units, parameters, memory and schedule."""

from typing import Any

import torch

from noprop.build import Task, build_embedding, build_method, unit_names
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.diffusion import denoising_weights, level_weight, step_coefficients
from noprop.errors import ConfigError
from noprop.method_config import AdjointConfig, DTConfig
from noprop.methods.base import Unit
from noprop.methods.ct import ContinuousNoProp
from noprop.methods.dt import DiscreteNoProp
from noprop.schedules import alpha_bar, snr, snr_slope

__all__ = ["describe"]


def describe(config: RunConfig, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """What ``noprop describe`` prints, without a look at data.

    Args:
        config: the run.
        shape: of one input.
        classes: m.

    Raises:
        ConfigError: If the networks cannot be built here.
    """
    labels = tuple(str(i) for i in range(classes))
    task = Task(shape, labels, Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    if config.method.encoder == "custom":
        raise ConfigError("method.encoder: describe knows only the encoders that ship")
    names = unit_names(config)
    # Of DT one block: a thousand alike would say no more.
    if isinstance(config.method, AdjointConfig) and config.method.gradient == "adjoint":
        config = replace(config, {"method.steps": 2})  # its memory does not depend on T
    method = build_method(config, task, build_embedding(config, task, None), only=names[0])
    sizes = [sum(p.numel() for p in unit.parameters) for unit in method.units]
    sizes = [sizes[0]] * (len(names) - len(sizes)) + sizes
    units = [{"name": n, "parameters": size} for n, size in zip(names, sizes, strict=True)]
    activations = _activations(method.units[0], shape, classes, config.train.batch_size)
    schedule: list[dict[str, Any]] = []
    if isinstance(method, DiscreteNoProp):
        assert isinstance(config.method, DTConfig)
        schedule = _levels(method.gamma, config.method)
    elif isinstance(method, ContinuousNoProp):
        schedule = _times(method)
    return {
        "recipe": config.recipe,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "shape": list(shape),
        "classes": classes,
        "units": units,
        "shared_parameters": sum(p.numel() for p in method.shared_parameters),
        # Weights, gradients and two moments, four bytes each, and what the backward pass keeps.
        "unit_memory_mb": (16 * units[0]["parameters"] + activations) / 1e6,
        "schedule": schedule,
    }


def _levels(gamma: torch.Tensor, c: DTConfig) -> list[dict[str, Any]]:
    """DT's levels; a block's weight is that of the step that leads to its level."""
    k = step_coefficients(gamma)
    weights = level_weight(c.weighting, gamma[1:], denoising_weights(gamma, 1.0)) * c.eta
    return [
        {
            "t": t,
            "alpha_bar": alpha_bar(gamma)[t].item(),
            "snr": snr(gamma)[t].item(),
            **{n: getattr(k, n)[t - 1].item() if t else None for n in ("a", "b", "c")},
            "weight": weights[t - 1].item() if t else None,
        }
        for t in range(len(gamma))
    ]


def _times(method: ContinuousNoProp) -> list[dict[str, Any]]:
    """CT's schedule as training begins, at eleven times."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    with torch.no_grad():
        gamma, slope = method.schedule(t)
    slope = snr_slope(gamma, slope)
    weight = method.unit.eta * level_weight(method.unit.weighting, gamma, 0.5 * slope)
    columns = {
        "t": t,
        "alpha_bar": alpha_bar(gamma),
        "snr": snr(gamma),
        "snr_slope": slope,
        "weight": weight,
    }
    return [{name: round(v[i].item(), 12) for name, v in columns.items()} for i in range(len(t))]


def _activations(unit: Unit, shape: tuple[int, ...], classes: int, batch: int) -> int:
    """Bytes that one forward pass of a batch leaves for the backward pass, counted, in float32."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []  # or freed storages would be counted as one
    x, y = torch.zeros(2, *shape), torch.arange(2) % classes
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(unit.loss(x, y, torch.Generator().manual_seed(0)))
    parameters = {p.untyped_storage().data_ptr() for p in unit.parameters}
    return sum(n for pointer, n in kept.items() if pointer not in parameters) * batch // 2
