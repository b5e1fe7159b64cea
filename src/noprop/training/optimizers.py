"""One update of a unit: its optimizer, its learning rate, and the average of its weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from noprop.run_settings import TrainConfig

__all__ = [
    "Optimizer",
    "descend",
    "follow",
    "learning_rate",
    "optimizer_state",
    "restore_average",
    "restore_optimizer",
]

# What an optimizer keeps of each parameter.
ADAM = {"step", "exp_avg", "exp_avg_sq"}
SGD = {"momentum_buffer"}
RMSPROP = {"step", "square_avg", "grad_avg"}


class Optimizer:
    """The optimizer of one unit: torch's AdamW, Adam, SGD or RMSprop, by torch's functions.

    The classes of ``torch.optim`` import torch's compiler at their first use, which takes each
    process a second and 74 MB. Their updates are the same, to the last bit.

    Args:
        config: Configuration of training.
        groups: The parameters, as :meth:`noprop.methods.base.Unit.parameter_groups` returns them.

    Attributes:
        groups: The groups; ``descend`` sets ``lr`` in each of them.
        state: What is kept of each parameter that was updated.
    """

    def __init__(self, config: TrainConfig, groups: Sequence[dict[str, Any]]):
        self.kind, self.momentum = config.optimizer, config.momentum
        own = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.groups = [{**own, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        devices = {p.device.type for p in self.parameters}
        self.fused = self.kind != "rmsprop" and devices <= {"cpu", "cuda", "mps"}

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in their order."""
        return [p for group in self.groups for p in group["params"]]

    @property
    def kept(self) -> set[str]:
        """Names of what is kept of a parameter."""
        if self.kind in ("adamw", "adam"):
            return ADAM
        return (RMSPROP if self.kind == "rmsprop" else set()) | (SGD if self.momentum else set())

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._descend(params, [p.grad for p in params], group)

    def zero_grad(self) -> None:
        """Free the gradients."""
        for p in self.parameters:
            p.grad = None

    def _descend(self, params: list[Any], grads: list[Any], group: dict[str, Any]) -> None:
        common = {"lr": group["lr"], "weight_decay": group["weight_decay"], "maximize": False}
        if self.kind == "sgd":
            buffers = [self.state.get(p, {}).get("momentum_buffer") for p in params]
            sgd(
                params,
                grads,
                buffers,
                fused=self.fused,
                foreach=None if not self.fused else False,
                momentum=self.momentum,
                dampening=0.0,
                nesterov=False,
                **common,
            )
            if self.momentum:  # the first call makes the buffers
                for p, buffer in zip(params, buffers, strict=True):
                    assert buffer is not None
                    self.state[p] = {"momentum_buffer": buffer}
            return
        for p in params:
            if p not in self.state:
                self.state[p] = self.start(p)
        of = {name: [self.state[p][name] for p in params] for name in self.kept}
        if self.kind == "rmsprop":
            rmsprop(
                params,
                grads,
                of["square_avg"],
                of["grad_avg"],
                of.get("momentum_buffer", []),
                of["step"],
                alpha=0.95,
                eps=1e-3**0.5,
                momentum=self.momentum,
                centered=True,
                **common,
            )
            return
        function = adamw if self.kind == "adamw" else adam
        function(
            params,
            grads,
            of["exp_avg"],
            of["exp_avg_sq"],
            [],
            of["step"],
            fused=self.fused,
            foreach=None if not self.fused else False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            **common,
        )

    def start(self, p: Tensor) -> dict[str, Tensor]:
        """Return what is kept of a parameter before its first update."""
        state = {name: torch.zeros_like(p) for name in sorted(self.kept)}
        step = torch.zeros((), dtype=torch.float32, device=p.device if self.fused else None)
        return state | {"step": step}


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


def descend(optimizer: Optimizer, lr: float, clip: float) -> None:
    """Update parameters along their gradients, and free these.

    Args:
        optimizer: Optimizer of the parameters.
        lr: Learning rate.
        clip: Greatest norm of the gradient; 0 for no limit.
    """
    for group in optimizer.groups:
        group["lr"] = lr * group.get("rate", 1.0)
    if clip:
        parameters = [p for group in optimizer.groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad()


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


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return what is kept of each parameter, by its number."""
    numbers = enumerate(optimizer.parameters)
    return {str(i): dict(optimizer.state[p]) for i, p in numbers if p in optimizer.state}


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restore what :func:`optimizer_state` returned, or its tensors read from a file.

    Raises:
        ValueError: If they are not those of such an optimizer.
    """
    parameters = optimizer.parameters
    optimizer.state.clear()
    for number, kept in state.items():
        if not 0 <= int(number) < len(parameters):
            raise ValueError(f"the optimizer state has a parameter {number} of {len(parameters)}")
        p = parameters[int(number)]
        if kept.keys() != optimizer.kept:
            raise ValueError(f"the optimizer state of a parameter holds {', '.join(kept)}")
        optimizer.state[p] = own = optimizer.start(p)
        for name, value in kept.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, wanted {tuple(own[name].shape)}"
                )
            # In place: a fused step walks a weight and its moments side by side, so they must have
            # the same order in memory.
            own[name].copy_(value)
