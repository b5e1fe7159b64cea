"""One update of a unit: its optimizer, its learning rate, and the average of its weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noprop.config import TrainConfig

__all__ = [
    "descend",
    "follow",
    "learning_rate",
    "make_optimizer",
    "optimizer_state",
    "restore_average",
    "restore_optimizer",
]

# What Adam and AdamW keep of a parameter, and SGD with momentum; without it SGD keeps nothing.
ADAM = {"step", "exp_avg", "exp_avg_sq"}
SGD = {"momentum_buffer"}
RMSPROP = {"step", "square_avg", "grad_avg"}


def make_optimizer(config: TrainConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer of one unit, fused into one pass over the weights.

    Args:
        config: Configuration of training.
        groups: The parameters, as :meth:`noprop.methods.base.Unit.parameter_groups` returns them.
    """
    if config.optimizer == "rmsprop":  # has no fused form
        return torch.optim.RMSprop(
            groups,
            lr=config.lr,
            alpha=0.95,
            eps=1e-3**0.5,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            centered=True,
        )
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    own = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = devices <= {"cpu", "cuda", "mps"}
    return kind[config.optimizer](
        groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused, **own
    )


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Return the learning rate of an update.

    Args:
        config: Configuration of training.
        progress: Fraction of a unit's training that lies before the update, in (0, 1).
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    if config.schedule == "constant-linear":
        return config.lr * min(1.0, 2 * (1 - progress))
    if config.schedule == "one-cycle":
        if progress < config.warmup:
            return config.lr * progress / config.warmup
        progress = (progress - config.warmup) / (1 - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def descend(optimizer: torch.optim.Optimizer, lr: float, clip: float) -> None:
    """Update parameters along their gradients, and free these.

    Args:
        optimizer: Optimizer of the parameters.
        lr: Learning rate.
        clip: Greatest norm of the gradient; 0 for no limit.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
    if clip:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def follow(average: Mapping[str, Tensor], module: nn.Module, decay: float, number: int) -> None:
    """Move the average of a module's weights and statistics towards their current values.

    Args:
        average: The average, by the names of the module's ``state_dict``; may be empty.
        module: The module after an update.
        decay: Weight of the average in (0, 1). Smaller at the beginning, (1 + n) / (10 + n), so
            that the weights before training are soon forgotten.
        number: n, number of previous updates.
    """
    if average:
        state = module.state_dict()
        weight = 1 - min(decay, (1 + number) / (10 + number))
        for name, value in average.items():
            value.lerp_(state[name], weight)


def restore_average(average: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Fill an average with the tensors of a file.

    Raises:
        KeyError: If one is missing.
    """
    for name, value in average.items():
        value.copy_(tensors[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of each parameter, by its number."""
    return {str(i): state for i, state in optimizer.state_dict()["state"].items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up what :func:`optimizer_state` gave, or its tensors read from a file.

    Raises:
        ValueError: If they are not those of such an optimizer.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": {int(i): s for i, s in state.items()}, "param_groups": groups}
    )
    wanted = ADAM
    if isinstance(optimizer, torch.optim.SGD):
        wanted = SGD if optimizer.defaults["momentum"] else set()
    if isinstance(optimizer, torch.optim.RMSprop):
        wanted = RMSPROP | (SGD if optimizer.defaults["momentum"] else set())
    # Fused steps walk a weight and its moments side by side: they must lie alike in memory.
    for p, kept in optimizer.state.items():
        moments: dict[str, Tensor] = {n: v for n, v in kept.items() if v is not None}
        if moments.keys() != wanted:
            raise ValueError(f"the optimizer state of a parameter holds {', '.join(moments)}")
        for name, value in moments.items():
            if value.shape == p.shape:
                kept[name] = torch.empty_like(p).copy_(value)
            elif value.ndim:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {tuple(p.shape)}")
