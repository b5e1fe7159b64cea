"""How much of its evaluation a run computes after training: as much as suits the training.

The full protocol has five inference runs of five chains and one mean chain. With T = 1000 that is
26,000 evaluations of the network for each test example, so after a training of seconds it would
take minutes. ``evaluation.budget`` limits the cost of a run's own evaluation to a fraction of the
training's; ``noprop evaluate`` always computes all.

The extent follows from the configuration and the data alone, so it is the same on every machine and
for a run that was resumed. Costs are multiply-accumulates of convolutions and matrix products.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from noprop.config import RunConfig, replace
from noprop.encoders import EncoderFactory
from noprop.evaluate import CHAINS, MEAN, WEIGHT_EXAMPLES, default_mode, modes_of
from noprop.methods.base import Method
from noprop.model import empty_model, ready
from noprop.task import RunData, Task

__all__ = ["Extent", "choose_extent", "count_products"]

LEAST_COST = 6e11  # an evaluation may always cost this: about 15 seconds of one core of 2021
LEAST_EXAMPLES = 200  # their accuracy has a standard error of at most 3.5 %
WEIGHTS_SHARE = 0.2  # of the budget, for the chains that the path weights are fitted to
FEW_STEPS = 10  # of a chain whose cost is counted
ADAPTIVE_STEPS = 100  # about what dopri5 takes
BACKWARD = 3.0  # cost of a chain forward and of its adjoint backward, in chains forward


@dataclass(frozen=True)
class Extent:
    """What an evaluation computes.

    Attributes:
        examples: Number of test examples.
        runs: Number of inference runs.
        modes: Ways of predicting.
        weights: Number of validation examples to which path weights are fitted.
        cost: Estimated cost, as a multiple of the training's.
        weights_cost: The part of ``cost`` for the path weights.
        protocol: What of the full protocol is left out: its ``examples``, ``runs`` or ``modes``.
    """

    examples: int
    runs: int
    modes: Collection[str]
    weights: int
    cost: float
    weights_cost: float
    protocol: dict[str, Any]


def choose_extent(
    config: RunConfig, data: RunData, encoder: EncoderFactory | None = None
) -> Extent:
    """Return what a run's own evaluation computes within ``evaluation.budget``.

    Left out are, in this order and only as far as necessary: averages of K chains, where the
    default prediction is the mean chain; inference runs but one; test examples, stratified.
    """
    model = empty_model(_few_steps(config), data.task, encoder)
    ready(model)
    features, chain = _costs(config, model.method, data.task)
    training = _training_cost(config, model.method, data.task, features, chain) * len(data.train)
    e, examples, every = config.evaluation, len(data.test), tuple(modes_of(model))
    most, chains = (e.runs, e.samples) if model.method.has_noise else (1, 1)
    share = {"full": math.inf, "off": 0.0}.get(str(e.budget), e.budget)
    budget = max(LEAST_COST, float(share) * training)
    weights, weights_cost = 0, 0.0
    if model.method.path_weights is not None:
        each = features + chains * chain
        weights = int(min(max(WEIGHTS_SHARE * budget / each, LEAST_EXAMPLES), WEIGHT_EXAMPLES))
        weights = min(weights, len(data.validation))
        weights_cost = weights * each

    def cost(runs: int, modes: Collection[str]) -> float:
        samples = chains if any(mode in modes for mode in CHAINS) else 1
        return features + (runs * samples + any(mode in modes for mode in MEAN)) * chain

    few = every
    if default_mode(model) not in CHAINS:
        few = tuple(mode for mode in every if mode not in CHAINS)
    left = max(0.0, budget - weights_cost)
    runs, modes = most, every
    for runs, modes in ((most, every), (most, few), (1, few)):
        if examples * cost(runs, modes) <= left:
            break
    else:
        examples = min(examples, max(LEAST_EXAMPLES, int(left / cost(runs, modes))))
    full = {"examples": len(data.test), "runs": most, "modes": list(every)}
    here = {"examples": examples, "runs": runs, "modes": list(modes)}
    return Extent(
        **here,
        weights=weights,
        cost=(examples * cost(runs, modes) + weights_cost) / training,
        weights_cost=weights_cost / training,
        protocol={name: full[name] for name in full if full[name] != here[name]},
    )


def _few_steps(config: RunConfig) -> RunConfig:
    """Return a configuration with chains of few steps, whose cost can be counted at once."""
    if not config.method.one_network:
        return config
    changes: dict[str, Any] = {"method.steps": min(FEW_STEPS, config.method.chain_length)}
    if getattr(config.method, "sampler", "") == "dopri5":
        changes["method.sampler"] = "euler"
    return replace(config, changes)


def _costs(config: RunConfig, method: Method, task: Task) -> tuple[float, float]:
    """Return the cost of the features of one example, and that of a chain from them.

    That of a second example: what all of a batch share, such as the features of the times, is
    computed once for hundreds of examples.
    """
    device = next(iter(method.parameters())).device
    draws, found = torch.Generator(device), list[tuple[int, int]]()
    for batch in (1, 2):
        x = torch.zeros(batch, *task.shape, device=device)
        with torch.no_grad(), count_products() as features:
            prepared = method.prepare(x)
        with torch.no_grad(), count_products() as chain:
            method.predict(x, draws, noise=False, prepared=prepared)
        found.append((features.total, chain.total))
    features, chain = (float(two - one) for one, two in zip(*found, strict=True))
    steps = config.method.chain_length
    if getattr(config.method, "sampler", "") == "dopri5":
        steps = ADAPTIVE_STEPS
    return features, chain * steps / method.num_steps


def _training_cost(
    config: RunConfig, method: Method, task: Task, features: float, chain: float
) -> float:
    """Return the cost of training with one example, of which features and a chain are given."""
    if config.method.trains_chain and not config.method.keeps_chain:
        return max(1.0, BACKWARD * config.train.epochs * (features + chain))
    few, more = (_cost_of_updates(config, method, task, n) for n in (2, 4))
    return max(1.0, config.train.epochs * (more - few) / 2)


def _cost_of_updates(config: RunConfig, method: Method, task: Task, batch: int) -> int:
    """Return the cost of one mini-batch for every unit, forward and backward."""
    device = next(iter(method.parameters())).device
    x, y = torch.zeros(batch, *task.shape, device=device), torch.arange(batch, device=device)
    y, draws, total = y % task.num_classes, torch.Generator(device), 0
    for phase in sorted({unit.phase for unit in method.units}):
        with count_products(backward=True) as counted:
            signals = method.signals(x, y, draws, phase)
        total += counted.total
        costs = dict[str, int]()
        for unit in (unit for unit in method.units if unit.phase == phase):
            # The blocks of a chain are equal, and may be a thousand; layers of a stack are not.
            kind = unit.name if config.method.stack else unit.name.rpartition("-")[0]
            if kind not in costs:
                with count_products(backward=True) as counted:
                    unit.loss(signals, y, draws)
                costs[kind] = counted.total * unit.passes
            total += costs[kind]
    return total


class count_products(TorchFunctionMode):  # noqa: N801, it reads as a function
    """Count the multiply-accumulates of convolutions and matrix products in a block.

    torch's own counter and its modes below this one import a compiler, which takes seconds.

    Args:
        backward: Count those of a backward pass through the block, too: one more product for each
            factor that has a gradient.

    Attributes:
        total: The count.
    """

    def __init__(self, *, backward: bool = False):
        super().__init__()
        self.backward, self.total = backward, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function, and count it."""
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name in ("conv1d", "conv2d", "conv3d"):
            weight: Tensor = args[1]
            self._add(out.numel() * weight.numel() // weight.shape[0], out, args)
        elif name in ("linear", "matmul", "mm", "bmm"):
            self._add(out.numel() * args[0].shape[-1], out, args)
        return out

    def _add(self, products: int, out: Tensor, args: tuple[Any, ...]) -> None:
        back = sum(factor.requires_grad for factor in args[:2]) if out.requires_grad else 0
        self.total += products * (1 + back * self.backward)
