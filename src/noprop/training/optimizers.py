"""The optimizer of one unit: how it is made, and its state as plain tensors and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noprop.config import TrainConfig

__all__ = ["make_optimizer", "optimizer_state", "restore_optimizer"]

# What Adam and AdamW keep of a parameter; SGD without momentum keeps nothing.
ADAM = {"step", "exp_avg", "exp_avg_sq"}


def make_optimizer(config: TrainConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of one unit, fused into one pass over the weights."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    fused = all(p.device.type in ("cpu", "cuda", "mps") for p in parameters)
    return kind[config.optimizer](
        parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused
    )


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
    # Fused steps walk a weight and its moments side by side: they must lie alike in memory.
    for p, kept in optimizer.state.items():
        moments: dict[str, Tensor] = {n: v for n, v in kept.items() if v is not None}
        if moments.keys() != (set() if isinstance(optimizer, torch.optim.SGD) else ADAM):
            raise ValueError(f"the optimizer state of a parameter holds {', '.join(moments)}")
        for name, value in moments.items():
            if value.shape == p.shape:
                kept[name] = torch.empty_like(p).copy_(value)
            elif value.ndim:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {tuple(p.shape)}")
