"""A run before it is trained: its units, parameters, memory and schedule."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noprop.build import build_embedding, build_method, resolve_layers
from noprop.config import RunConfig, replace, to_mapping
from noprop.data import Normalization
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError
from noprop.methods.adjoint import SolverUnit
from noprop.methods.base import LossTerms, Method, Unit
from noprop.task import Task

__all__ = ["describe"]


def describe(
    config: RunConfig,
    shape: tuple[int, ...],
    classes: int,
    *,
    examples: int = 0,
    encoder: EncoderFactory | None = None,
) -> dict[str, Any]:
    """Return what ``noprop describe`` prints; no data are read.

    Args:
        config: The configuration of the run.
        shape: Shape of one input.
        classes: Number m of classes.
        examples: Number of training examples, for the estimated time.
        encoder: The user's own encoder, if the configuration has one.

    Raises:
        ConfigError: If the networks cannot be built on this machine.
    """
    if config.method.has_own_code and encoder is None:
        raise ConfigError("method.encoder: give your own encoder with --encoder MODULE:FUNCTION")
    labels = tuple(map(str, range(classes)))
    task = Task(shape, labels, Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    config = resolve_layers(config, task, encoder)
    steps = config.method.chain_length
    if config.method.trains_chain and not config.method.keeps_chain:
        config = replace(config, {"method.steps": 2})  # the memory does not depend on T
    # One block is enough, for all blocks have the same size.
    names = config.method.unit_names
    settings = changed_settings(config)
    embedding = build_embedding(config, task, None)
    method = build_method(config, task, embedding, factory=encoder, only=names[0])
    sizes = [sum(p.numel() for p in unit.parameters) for unit in method.units]
    sizes = [sizes[0]] * (len(names) - len(sizes)) + sizes
    depths = []
    # The units of a stack are trained together, on what one forward pass leaves in memory.
    together = method.units if config.method.stack else method.units[:1]
    for unit in method.units:
        if isinstance(unit, SolverUnit):
            depths.append(_depth_of_solver(unit, shape, steps))
        else:
            loss = _loss(method, unit, shape, classes).total
            depths.append(_local_depth(loss, unit.parameters))
    depths = [depths[0]] * (len(names) - len(depths)) + depths
    updates = config.train.epochs * max(1, examples // config.train.batch_size)
    seconds = _seconds_of_update(method, together, shape, classes, config.train.batch_size)
    if config.method.trains_chain and not config.method.keeps_chain:
        seconds *= steps / config.method.chain_length
    costs = 1.0 if config.method.stack else sum(config.method.unit_costs.values())
    activations = _activations(method, together, shape, classes, config.train.batch_size)
    return {
        "recipe": config.recipe,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "shape": list(shape),
        "classes": classes,
        "settings": settings,
        "units": [
            {"name": name, "parameters": size, "local_depth": depth}
            for name, size, depth in zip(names, sizes, depths, strict=True)
        ],
        "stack": config.method.stack,
        "shared_parameters": sum(p.numel() for p in method.shared_parameters),
        "parameters": sum(sizes) + sum(p.numel() for p in method.shared_parameters),
        "examples": examples,
        "updates": updates,
        "training_seconds": seconds * updates * costs,
        # Weights, gradients and two moments, four bytes each, and the activations.
        "unit_memory_mb": (16 * sum(sizes[: len(together)]) + activations) / 1e6,
        "schedule": method.schedule_table(),
    }


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """Return the fields whose values are not the method's defaults, but for the data set."""
    found, default = (
        to_mapping(c) for c in (config, replace(RunConfig(), {"method.name": config.method.name}))
    )
    return {
        f"{part}.{name}": value
        for part in ("data", "method", "train")
        for name, value in found[part].items()
        if name != "dataset" and value != default[part].get(name)
    }


def _seconds_of_update(
    method: Method, units: Sequence[Unit], shape: tuple[int, ...], classes: int, batch: int
) -> float:
    """Return the time of a forward and a backward pass on this machine, with one thread."""
    x, y = torch.rand(batch, *shape), torch.arange(batch) % classes
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for seed in range(3):
            began, draws = time.perf_counter(), torch.Generator().manual_seed(seed)
            for phase in sorted({unit.phase for unit in units}):
                signals = method.signals(x, y, draws, phase)
                for unit in units:
                    if unit.phase == phase:
                        unit.loss(signals, y, draws).total.backward()
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
        for parameter in method.parameters():
            parameter.grad = None
    return min(seconds)


WEIGHTED = {"ConvolutionBackward0", "AddmmBackward0", "MmBackward0"}
VIEWS = {"TBackward0", "SliceBackward0", "ViewBackward0", "AliasBackward0"}


def _local_depth(loss: Tensor, parameters: Sequence[Tensor]) -> int:
    """Return the greatest number of layers with weights that one gradient of a loss crosses.

    Layers are convolutions and products with the parameters; the longest path of the graph counts.
    """
    root, own = loss.grad_fn, {id(p) for p in parameters}

    def is_weight(node: Any) -> bool:
        while node is not None and node.name() in VIEWS:
            node = node.next_functions[0][0]
        return node is not None and id(getattr(node, "variable", None)) in own

    depths: dict[Any, int] = {None: 0}
    left = [root]
    while left:
        node = left[-1]
        inputs = [parent for parent, _ in node.next_functions] if node is not None else []
        if missing := [parent for parent in inputs if parent not in depths]:
            left += missing
            continue
        left.pop()
        here = node is not None and node.name() in WEIGHTED and any(map(is_weight, inputs))
        depths[node] = max((depths[parent] for parent in inputs), default=0) + here
    return depths[root]


def _depth_of_solver(unit: SolverUnit, shape: tuple[int, ...], steps: int) -> int:
    """Return the local depth of an ODE's solution by Euler steps.

    The solver packs z and the features of x into one tensor, so the graph of its own loss has paths
    that no gradient takes. Each step after the first adds as much as the second one.
    """
    found, weight = [], unit.embedding.weight
    for few in (1, 2):
        context, z = unit.network.context(torch.zeros(2, *shape)), torch.zeros(2, weight.shape[1])
        for _ in range(few):
            z = z + unit.network(z, context, unit.network.time_context(torch.zeros(1))) @ weight
        found.append(_local_depth(unit.readout(z, weight), unit.parameters))
    return found[0] + (steps - 1) * (found[1] - found[0])


def _loss(method: Method, unit: Unit, shape: tuple[int, ...], classes: int) -> LossTerms:
    """Return the loss of a unit on a batch of two."""
    x, y, draws = torch.zeros(2, *shape), torch.arange(2) % classes, torch.Generator()
    return unit.loss(method.signals(x, y, draws.manual_seed(0), unit.phase), y, draws)


def _activations(
    method: Method, units: Sequence[Unit], shape: tuple[int, ...], classes: int, batch: int
) -> int:
    """Return the bytes that a forward pass of a batch keeps for the backward pass, in float32."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []  # a freed storage's address would be used again, and counted once for two
    x, y, draws = torch.zeros(2, *shape), torch.arange(2) % classes, torch.Generator()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(signals := method.signals(x, y, draws.manual_seed(0), units[0].phase))
        alive += [u.loss(signals, y, draws) for u in units if u.phase == units[0].phase]
    parameters = {p.untyped_storage().data_ptr() for u in units for p in u.parameters}
    return sum(n for pointer, n in kept.items() if pointer not in parameters) * batch // 2
