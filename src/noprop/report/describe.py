"""A run before it is trained: its units, parameters, memory and schedule."""

from typing import Any

import torch

from noprop.build import Task, build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.errors import ConfigError
from noprop.methods.base import Unit

__all__ = ["describe"]


def describe(config: RunConfig, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Return what ``noprop describe`` prints; no data are read.

    Args:
        config: The configuration of the run.
        shape: Shape of one input.
        classes: Number m of classes.

    Raises:
        ConfigError: If the networks cannot be built on this machine.
    """
    if config.method.encoder == "custom":
        raise ConfigError("method.encoder: describe knows only the encoders of the package")
    labels = tuple(map(str, range(classes)))
    task = Task(shape, labels, Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    if config.method.trains_chain and not config.method.keeps_chain:
        config = replace(config, {"method.steps": 2})  # the memory does not depend on T
    # One block is enough, for all blocks have the same size.
    names = config.method.unit_names
    method = build_method(config, task, build_embedding(config, task, None), only=names[0])
    sizes = [sum(p.numel() for p in unit.parameters) for unit in method.units]
    sizes = [sizes[0]] * (len(names) - len(sizes)) + sizes
    activations = _activations(method.units[0], shape, classes, config.train.batch_size)
    return {
        "recipe": config.recipe,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "shape": list(shape),
        "classes": classes,
        "units": [{"name": n, "parameters": s} for n, s in zip(names, sizes, strict=True)],
        "shared_parameters": sum(p.numel() for p in method.shared_parameters),
        # Weights, gradients and two moments, four bytes each, and the activations.
        "unit_memory_mb": (16 * sizes[0] + activations) / 1e6,
        "schedule": method.schedule_table(),
    }


def _activations(unit: Unit, shape: tuple[int, ...], classes: int, batch: int) -> int:
    """Return the bytes that a forward pass of a batch keeps for the backward pass, in float32."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []  # a freed storage's address would be used again, and counted once for two
    x, y = torch.zeros(2, *shape), torch.arange(2) % classes
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(unit.loss(x, y, torch.Generator().manual_seed(0)))
    parameters = {p.untyped_storage().data_ptr() for p in unit.parameters}
    return sum(n for pointer, n in kept.items() if pointer not in parameters) * batch // 2
