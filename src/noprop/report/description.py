"""A run before it is trained: its units, parameters, memory and schedule."""

from typing import Any

import torch

from noprop.build import Task, build_embedding, build_method
from noprop.config import RunConfig
from noprop.data import Normalization
from noprop.diffusion import denoising_weights
from noprop.errors import ConfigError
from noprop.methods.base import Unit
from noprop.methods.ct import ContinuousNoProp
from noprop.methods.dt import DiscreteNoProp
from noprop.objectives import level_weight
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
    names = tuple(str(i) for i in range(classes))
    task = Task(shape, names, Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    if config.method.encoder == "custom":
        raise ConfigError("method.encoder: describe knows only the encoders that ship")
    method = build_method(config, task, build_embedding(config, task, None))
    units = [
        {"name": u.name, "parameters": sum(p.numel() for p in u.parameters)} for u in method.units
    ]
    activations = _activations(method.units[0], shape, classes, config.train.batch_size)
    schedule: list[dict[str, Any]] = []
    if isinstance(method, DiscreteNoProp):
        schedule = _levels(method, config)
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


def _levels(method: DiscreteNoProp, config: RunConfig) -> list[dict[str, Any]]:
    """DT's levels; a block's weight is that of the step that leads to its level."""
    k, gamma = method.coefficients, method.gamma
    weights = [b.weight for b in method.blocks]
    if config.method.name == "dt" and config.method.weighting == "snr":
        weights = denoising_weights(gamma, config.method.eta).tolist()  # in float64
    return [
        {
            "t": t,
            "alpha_bar": alpha_bar(gamma)[t].item(),
            "snr": snr(gamma)[t].item(),
            **{n: getattr(k, n)[t - 1].item() if t else None for n in ("a", "b", "c")},
            "weight": weights[t - 1] if t else None,
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
