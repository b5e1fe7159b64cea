"""What is kept of a run of chains, and the prediction that is made of it.

The first chain's latents at some levels, and the guesses of all steps, averaged over the chains.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from noprop.embeddings import nearest_class
from noprop.methods.base import Prediction

__all__ = ["STRETCHES", "ChainRecord", "check_samples", "start"]

STRETCHES = 10  # parts of a long chain over which guesses are averaged
ALL_LEVELS = 40  # chains of more steps keep only some of their levels
SOME_LEVELS = 21


def check_samples(samples: int) -> None:
    """Refuse a number of chains below 1.

    Raises:
        ValueError: If ``samples`` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")


def start(
    chains: int, batch: int, dim: int, generator: torch.Generator | None, device: torch.device
) -> Float[Tensor, "rows dim"]:
    """z_0 of all chains, shape (K·B, d): standard normal, or its mean 0 without a generator."""
    z = torch.zeros(chains * batch, dim, device=device)
    return z if generator is None else z.normal_(generator=generator)


class ChainRecord:
    """Watches K chains of T steps over B images; row k·B + i is chain k of image i.

    Args:
        steps: T.
        chains: K.
        batch: B.
        stretches: P, into how many equal parts the guesses are averaged; at most T.
    """

    def __init__(self, steps: int, chains: int, batch: int, stretches: int):
        self.num_steps, self.chains, self.batch = steps, chains, batch
        self.stretches = min(stretches, steps)
        some = torch.linspace(0, steps, SOME_LEVELS).round().long().tolist()
        self.kept: Sequence[int] = range(steps + 1) if steps <= ALL_LEVELS else some
        self._wanted = frozenset(self.kept)
        self._latents: list[Tensor] = []
        self._sums: list[Tensor | None] = [None] * self.stretches
        self._counts = [0] * self.stretches

    def observe(self, i: int, z: Float[Tensor, "rows dim"]) -> None:
        """Level ``i`` of 0..T."""
        if i in self._wanted:
            self._latents.append(z[: self.batch].clone())

    def guess(self, i: int, p: Float[Tensor, "rows classes"]) -> None:
        """Class probabilities guessed in step ``i`` of 0..T-1."""
        at = i * self.stretches // self.num_steps
        total = self._sums[at]
        self._sums[at] = p.clone() if total is None else total.add_(p)
        self._counts[at] += 1

    @property
    def times(self) -> Float[Tensor, " levels"]:
        """The kept levels over T, in [0, 1]."""
        return torch.tensor(self.kept, dtype=torch.float32) / self.num_steps

    @property
    def path(self) -> Float[Tensor, "stretches batch classes"]:
        """The guesses' means over chains and each stretch."""
        sums = torch.stack([s for s in self._sums if s is not None])
        counts = torch.tensor(self._counts, dtype=sums.dtype, device=sums.device)
        means = sums.unflatten(1, (self.chains, self.batch)).mean(dim=1)
        return means / counts[:, None, None]

    @property
    def latents(self) -> Float[Tensor, "levels batch dim"]:
        """The first chain at the kept levels."""
        return torch.stack(self._latents)

    def steps(self, weight: Float[Tensor, "classes dim"]) -> Int64[Tensor, "levels batch"]:
        """The class whose embedding is nearest, at the kept levels."""
        return torch.stack([nearest_class(z, weight) for z in self._latents])

    def prediction(
        self,
        ends: Float[Tensor, "rows classes"],
        weight: Float[Tensor, "classes dim"],
        path_weights: Float[Tensor, " stretches"] | None,
        evaluations: int,
        longest: int = 1,
    ) -> Prediction:
        """What the chains say.

        Args:
            ends: class probabilities of each chain's end, shape (K·B, m).
            weight: W_Embed.
            path_weights: of the path average; without them, the mean of the ends.
            evaluations: how often the network was asked.
            longest: the time of the last level, as ``Prediction.times`` counts it.
        """
        path = self.path if self._counts[0] else None
        probabilities = ends.unflatten(0, (self.chains, self.batch)).mean(dim=0)
        if path_weights is not None:
            assert path is not None, "the path average needs guesses"
            probabilities = torch.einsum("t,tbm->bm", path_weights.to(path), path)
        return Prediction(
            probabilities,
            ends[: self.batch],
            path,
            self.times * longest,
            self.steps(weight),
            self.latents,
            evaluations,
        )
