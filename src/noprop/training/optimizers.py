"""The optimizer of one unit: how it is made, and its state as plain tensors and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noprop.config import TrainConfig

__all__ = ["make_optimizer", "optimizer_state", "restore_optimizer"]


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
    """Take up what :func:`optimizer_state` gave, or its tensors read from a file."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": {int(i): s for i, s in state.items()}, "param_groups": groups}
    )
    # Fused steps walk a weight and its moments side by side: they must lie alike in memory.
    for p, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                moments[name] = torch.empty_like(p).copy_(value)
