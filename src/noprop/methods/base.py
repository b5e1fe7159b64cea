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

from noprop.embeddings import Embedding

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
        coupling: weight of this unit's loss where all descend shared parameters on one mini-batch.
        passes: how often the unit goes over the training set in one epoch.
        beside: whether, where parameters are shared, the unit takes a step beside every step of
            the others, on the same mini-batch, as the readout does in Algorithm 1.
        reads_images: whether the loss looks at x at all; if not, x may be empty.
    """

    name: str
    module: nn.Module
    coupling: float = 1.0
    passes: int = 1
    beside: bool = False
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
        single: the same from the first chain's end alone, the paper's protocol, shape (B, m).
        path: probabilities guessed on the way, averaged over the chains, for each block or stretch
            of steps, shape (P, B, m); None for a method whose steps guess none.
        times: t of the levels kept, in 0..T for blocks and [0, 1] for continuous time, shape (L,).
        steps: class whose embedding is nearest to z_t, in the first chain, shape (L, B).
        latents: z_t of the first chain, shape (L, B, d).
        evaluations: how often the chain's network was asked.
    """

    probabilities: Float[Tensor, "batch classes"]
    single: Float[Tensor, "batch classes"]
    path: Float[Tensor, "stretches batch classes"] | None
    times: Float[Tensor, " levels"]
    steps: Int64[Tensor, "levels batch"]
    latents: Float[Tensor, "levels batch dim"]
    evaluations: int


class Method(ABC):
    """Units, the parameters they share, and prediction.

    Attributes:
        embedding: W_Embed.
        shared: module whose parameters are shared; it may have none.
        path_weights: of the path average, one for each entry of ``Prediction.path``, uniform until
            they are fitted; None for a method without a path.
        noise_by_default: whether the default prediction averages chains with noise, or runs the
            mean chain alone; decided on validation splits (docs/findings.md).
    """

    embedding: Embedding
    shared: nn.Module
    path_weights: Tensor | None = None
    noise_by_default: bool = True

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

    def averages(self, average: str | None) -> str:
        """The way to average, ``path`` unless told otherwise where there is a path.

        Raises:
            ValueError: If this method has no such way.
        """
        known = ("readout",) if self.path_weights is None else ("path", "readout")
        if average not in (None, *known):
            raise ValueError(f"average must be {' or '.join(map(repr, known))}, got {average!r}")
        return average or known[0]

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
        average: str | None = "readout",
        prepared: Any = None,
    ) -> Prediction:
        """Class probabilities of a batch, from x and noise alone.

        One chain with noise (the paper's protocol) is one *sample* from p(y|x).

        Args:
            x: inputs, normalised as in training.
            generator: source of all noise, on the device of ``x``.
            samples: K, how many chains to average; x's features are computed once for all of them.
            noise: whether the chain draws; without, it is the mean chain from z_0 = 0.
            average: ``readout`` for the readout of the chain's end; ``path``, where a method has
                one, for the mean over chains and steps of the guesses on the way, weighted by
                ``path_weights``; None for the method's own default.
            prepared: the result of :meth:`prepare`, where it is at hand.

        Raises:
            ValueError: If ``samples`` or ``average`` is out of range.
        """

    def control(self, generator: torch.Generator, prepared: Any) -> Int64[Tensor, " batch"] | None:
        """What the last step alone answers on z ~ N(0, I), or None where that says nothing.

        A chain that works denoises step by step; one whose schedule runs backwards leaves all the
        work to its last step, which this shows.
        """
        return None

    def bound(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        *,
        prepared: Any = None,
    ) -> dict[str, float] | None:
        """The terms of a bound on -log p(y|x) in nats, or None for a method that has none.

        ``prepared`` as for :meth:`predict`; with it the images are not read again.
        """
        return None

    def facts(self) -> dict[str, float | list[float]]:
        """Numbers to log after every epoch beside the losses, such as those of a schedule."""
        return {}
