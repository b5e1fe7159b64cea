"""The contract: a method is units, shared parameters, and a way to predict.

A *unit* is an independently trainable part. *Shared parameters* are what several units' losses
reach: W_Embed when it is learned, nothing when it is fixed. Training knows only these; placing
units on processes or machines only partitions them. ``predict`` is given x and a generator, never
y.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["LossTerms", "Method", "Prediction", "Unit"]


@dataclass(frozen=True)
class LossTerms:
    """Named terms of a loss, each a scalar: a mean over the batch, in nats."""

    terms: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The sum, which training descends."""
        return torch.stack(list(self.terms.values())).sum()


class Unit(ABC):
    """An independently trainable part: its own parameters, loss, optimizer and checkpoint.

    Attributes:
        name: unique within the method, fit for a file name.
        module: holds the unit's parameters and buffers.
        coupling: weight of this unit's loss where several descend shared parameters together.
        passes: how often the unit goes over the training set in one epoch.
        reads_images: whether the loss looks at x at all; if not, x may be empty.
    """

    name: str
    module: nn.Module
    coupling: float = 1.0
    passes: int = 1
    reads_images: bool = True

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The unit's own parameters; no other unit's loss reaches them."""
        return tuple(self.module.parameters())

    @abstractmethod
    def loss(
        self, x: Float[Tensor, "images ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """The loss on a batch; all its noise and dropout come from the generator."""


@dataclass(frozen=True)
class Prediction:
    """What a method says of a batch.

    Attributes:
        probabilities: p(y|x) as the chosen way of predicting estimates it, shape (B, m).
        single: the same from the first chain's readout alone, the paper's protocol, shape (B, m).
        path: each block's own class probabilities, averaged over the chains, shape (T, B, m).
        steps: class whose embedding is nearest to z_t, in the first chain, shape (T + 1, B).
        latents: z_t of the first chain, shape (T + 1, B, d).
    """

    probabilities: Float[Tensor, "batch classes"]
    single: Float[Tensor, "batch classes"]
    path: Float[Tensor, "steps batch classes"]
    steps: Int64[Tensor, "levels batch"]
    latents: Float[Tensor, "levels batch dim"]


class Method(ABC):
    """Units, the parameters they share, and prediction.

    Attributes:
        shared: module whose parameters are shared; it may have none.
    """

    shared: nn.Module

    @property
    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """All units, in the order of Algorithm 1."""

    @property
    def shared_parameters(self) -> tuple[nn.Parameter, ...]:
        """What several units' losses reach; empty when the embeddings are fixed."""
        return tuple(self.shared.parameters())

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Every parameter of the method."""
        own = (p for unit in self.units for p in unit.parameters)
        return (*own, *self.shared_parameters)

    @abstractmethod
    def prepare(self, x: Float[Tensor, "batch ..."]) -> Any:
        """All that prediction takes from x, to be reused by any number of chains."""

    @abstractmethod
    def predict(
        self,
        x: Float[Tensor, "batch ..."],
        generator: torch.Generator,
        *,
        samples: int = 1,
        noise: bool = True,
        average: str = "readout",
        prepared: Any = None,
    ) -> Prediction:
        """Run the chain; see the method for the ways to average."""
