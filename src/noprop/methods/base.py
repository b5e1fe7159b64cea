"""The contract: a method is units, shared parameters, and a way to predict.

A *unit* is an independently trainable part. *Shared parameters* receive gradients from the losses
of several units: W_Embed when it is learned, nothing when it is fixed. Training knows only these;
placing units on processes or machines only partitions them. ``predict`` gets x and a generator,
never y.

The units of a *stack* (:mod:`noprop.methods.stack`) read each other's outputs: then the method
computes what they read once for each mini-batch, in :meth:`Method.signals`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.chains import Chains, initial_latent

__all__ = ["LossTerms", "Method", "Prediction", "Unit", "cross_entropy", "weighted_mean"]


@dataclass(frozen=True)
class LossTerms:
    """Named terms of a loss, each a scalar: a mean over the batch, in nats."""

    terms: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """Sum of the terms, the objective of training."""
        return torch.stack(list(self.terms.values())).sum()


def weighted_mean(
    errors: Float[Tensor, " batch"], weight: Float[Tensor, " batch"] | None
) -> Float[Tensor, ""]:
    """Return the mean of the examples' errors, each times its weight if there are weights.

    The sum is divided by the number of examples and not by the sum of their weights. So with
    weights of mean 1 over the training part, the mean over mini-batches is that of the whole part.
    """
    return errors.mean() if weight is None else (errors * weight).mean()


def cross_entropy(
    logits: Float[Tensor, "batch classes"],
    y: Int64[Tensor, " batch"],
    weight: Float[Tensor, " batch"] | None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats; see :func:`weighted_mean` for the weights."""
    if weight is None:
        return F.cross_entropy(logits, y)
    return weighted_mean(F.cross_entropy(logits, y, reduction="none"), weight)


class Unit(ABC):
    """An independently trainable part: its own parameters, loss, optimizer and checkpoint.

    Attributes:
        name: Name, unique within the method and valid as a file name.
        module: Module with the unit's parameters and buffers.
        coupling: Weight of this unit's loss when all units update shared parameters on one
            mini-batch.
        passes: Number of passes over the training set in one epoch.
        beside: Whether the unit takes a step with every step of the others on the same mini-batch,
            if parameters are shared, as the readout does in Algorithm 1.
        reads_images: Whether the loss reads x; if not, x may be empty.
        weight: Constant factor of the loss. Divided by it, the losses of units can be compared.
        phase: Part of an epoch in which a stack trains the unit: every mini-batch for the units of
            phase 0, then every one for those of phase 1, ….
    """

    name: str
    module: nn.Module
    coupling: float = 1.0
    passes: int = 1
    beside: bool = False
    reads_images: bool = True
    weight: float = 1.0
    phase: int = 0

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The unit's own parameters, which no other unit's loss reaches."""
        return tuple(self.module.parameters())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters in the groups of an optimizer.

        A group may have a ``weight_decay`` of its own, and a ``rate``: a factor of ``train.lr``.
        """
        return [{"params": list(self.parameters)}]

    @abstractmethod
    def loss(self, x: Any, y: Int64[Tensor, " batch"], generator: torch.Generator) -> LossTerms:
        """Return the loss of a batch; all noise and dropout come from the generator.

        Args:
            x: What :meth:`Method.signals` returned: inputs, shape (B, ...), except in a stack.
            y: Labels.
            generator: Source of all randomness.
        """


@dataclass(frozen=True)
class Prediction:
    """The prediction for a batch.

    Attributes:
        probabilities: p(y|x) as the chosen average estimates it, shape (B, m).
        ends: The same from the end of each of the K chains alone, shape (K, B, m).
        path: Probabilities guessed by each block or stretch of steps, averaged over the chains,
            shape (P, B, m); None for a method whose steps make no guesses.
        times: t of the recorded levels, in 0..T for blocks and [0, 1] for continuous time,
            shape (L,).
        steps: Class whose embedding is nearest to z_t, in the first chain, shape (L, B).
        latents: z_t of the first chain, shape (L, B, d).
        evaluations: Number of evaluations of the network by one chain.
    """

    probabilities: Float[Tensor, "batch classes"]
    ends: Float[Tensor, "chains batch classes"]
    path: Float[Tensor, "stretches batch classes"] | None
    times: Float[Tensor, " levels"]
    steps: Int64[Tensor, "levels batch"]
    latents: Float[Tensor, "levels batch dim"]
    evaluations: int

    @property
    def single(self) -> Float[Tensor, "batch classes"]:
        """Probabilities from the end of the first chain, the paper's protocol, shape (B, m)."""
        return self.ends[0]


class Method(ABC):
    """Units, the parameters that they share, and prediction.

    A method passes its parts to ``__init__`` and writes :meth:`prepare` and :meth:`chain`.

    Args:
        units: All units, in the order of Algorithm 1.
        embedding: W_Embed, the module whose parameters are shared; it may have none.
        steps: T of inference.
        stretches: Number of guesses of a path, at most T; 0 for a method without a path.
        end_time: Time of a chain's end, as ``Prediction.times`` counts it: T for blocks, or 1.

    Attributes:
        path_weights: Weights of the path average, one for each entry of ``Prediction.path``,
            uniform until they are fitted; None for a method without a path.
        noise_by_default: Whether the default prediction averages chains with noise, or runs the
            mean chain alone; decided on validation splits (docs/findings.md).
        has_noise: Whether chains can draw noise; without it one chain is run, whatever is asked.
    """

    noise_by_default: bool = True
    has_noise: bool = True

    def __init__(
        self,
        units: Sequence[Unit],
        embedding: Embedding,
        *,
        steps: int,
        stretches: int = 0,
        end_time: int = 1,
    ):
        self.units = units
        self.embedding = embedding
        self.shared: nn.Module = embedding
        self.num_steps, self.end_time = steps, end_time
        self.path_weights = torch.full((stretches,), 1 / stretches) if stretches else None

    @property
    def shared_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters that several units' losses reach; empty when the embeddings are fixed."""
        return tuple(self.shared.parameters())

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Every parameter of the method."""
        own = (p for unit in self.units for p in unit.parameters)
        return (*own, *self.shared_parameters)

    def signals(
        self,
        x: Float[Tensor, "images ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        phase: int = 0,
    ) -> Any:
        """Return what the losses of a mini-batch read: x, unless units read each other's outputs.

        In a stack it is computed once for all units of a phase. No gradient of a unit's loss may
        pass through it to another unit, whose weights have changed by then.

        Args:
            x: Inputs, shape (B, ...).
            y: Labels.
            generator: Source of all randomness.
            phase: Phase of the units that read it.
        """
        return x

    @abstractmethod
    def prepare(self, x: Float[Tensor, "batch ..."]) -> Any:
        """Return all that prediction takes from x: one result serves any number of chains."""

    @abstractmethod
    def chain(self, chains: Chains, prepared: Any) -> tuple[Float[Tensor, "rows classes"], int]:
        """Run the chains from ``chains.z``, and record their levels and guesses in ``chains``.

        Args:
            chains: The chains before their first step.
            prepared: The result of :meth:`prepare`.

        Returns:
            Class probabilities at the end of each chain, shape (K·B, m), and how often a chain
            evaluated the network.
        """

    def check(self, samples: int, average: str | None) -> str:
        """Check the arguments of :meth:`predict`.

        Returns:
            The way to average; ``path`` for None if there is a path.

        Raises:
            ValueError: If ``samples`` is below 1, or the method has no such way to average.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        known = ("readout",) if self.path_weights is None else ("path", "readout")
        if average not in (None, *known):
            raise ValueError(f"average must be {' or '.join(map(repr, known))}, got {average!r}")
        return average or known[0]

    @torch.no_grad()
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
        """Return class probabilities of a batch, from x and noise alone.

        One chain with noise (the paper's protocol) is one *sample* from p(y|x).

        Args:
            x: Inputs, normalised as in training.
            generator: Source of all noise, on the device of ``x``.
            samples: K, number of chains to average; the features of x are computed once for all.
            noise: Whether the chains draw noise; without it, one mean chain runs from z_0 = 0.
            average: ``readout`` for the readout at the end of the chain; ``path``, for a method
                that has one, for the mean of the guesses over chains and steps, weighted by
                ``path_weights``; None for the method's own default.
            prepared: The result of :meth:`prepare`, if it exists already.

        Raises:
            ValueError: If ``samples`` or ``average`` is out of range.
        """
        average = self.check(samples, average)
        if prepared is None:
            prepared = self.prepare(x)
        samples, source = (samples, generator) if noise and self.has_noise else (1, None)
        weight = self.embedding.weight
        rows, dim = samples * x.shape[0], weight.shape[1]
        z = initial_latent(rows, dim, source, x.device, weight.dtype)
        stretches = 0 if self.path_weights is None else len(self.path_weights)
        chains = Chains(samples, self.num_steps, z, source, stretches)
        ends, evaluations = self.chain(chains, prepared)
        probabilities, path = chains.mean(ends), chains.path
        if average == "path":
            assert path is not None
            assert self.path_weights is not None
            probabilities = torch.einsum("t,tbm->bm", self.path_weights.to(path), path)
        return Prediction(
            probabilities,
            ends.unflatten(0, (samples, x.shape[0])),
            path,
            chains.kept_times * self.end_time,
            chains.nearest(weight),
            chains.latents,
            evaluations,
        )

    def control(self, generator: torch.Generator, prepared: Any) -> Int64[Tensor, " batch"] | None:
        """Return the last step's answer on z ~ N(0, I), or None for a method without such a step.

        A chain that works denoises step by step. One whose schedule runs backwards leaves all the
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
        """Return the terms of a bound on -log p(y|x) in nats, or None for a method without one.

        ``prepared`` as for :meth:`predict`; with it the images are not read again.
        """
        return None

    def schedule_table(self) -> list[dict[str, Any]]:
        """Return one row for each level of the noise schedule; none without a schedule."""
        return []

    def facts(self) -> dict[str, float | list[float]]:
        """Return numbers to log after every epoch with the losses, such as those of a schedule."""
        return {}
