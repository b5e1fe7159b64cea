"""The chains of a prediction: their noise, their levels, and the guesses of their steps."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from noprop.embeddings import nearest_class
from noprop.samplers import Noise

__all__ = ["NUM_STRETCHES", "Chains", "class_probabilities", "float32_or_64", "initial_latent"]

NUM_STRETCHES = 10  # parts of a long chain over which guesses are averaged
MOST_STEPS_KEPT_WHOLE = 40  # a chain of more steps keeps only some of its levels
LEVELS_KEPT_OF_MORE = 21
MOST_CLASSES_ACROSS = 64


def float32_or_64(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return bf16 as float32, in which chains are computed; networks in float64 keep float64."""
    return x if x.dtype == torch.float64 else x.float()


def class_probabilities(
    logits: Float[Tensor, "rows classes"],
) -> Float[Tensor, "rows classes"]:
    """Return the softmax over the classes.

    On a CPU torch vectorises it over the rows of a transposed copy, and over no more than a few
    classes not at all: with ten classes the copy makes it seven times as fast.
    """
    if logits.device.type != "cpu" or logits.shape[1] > MOST_CLASSES_ACROSS:
        return logits.softmax(dim=1)
    return logits.t().contiguous().softmax(dim=0).t()


def initial_latent(
    rows: int,
    dim: int,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "rows dim"]:
    """z_0 of every chain: standard normal, or its mean 0 without a generator."""
    z = torch.zeros(rows, dim, device=device, dtype=dtype)
    return z if generator is None else z.normal_(generator=generator)


class Chains:
    """K chains of T steps over B images; row k·B + i is chain k of image i.

    Args:
        samples: K.
        steps: T.
        z: z_0 of every chain, shape (K·B, d).
        generator: Source of the noise of the steps, as for :func:`noprop.samplers.ancestral`; None
            for the mean chain.
        stretches: P, the number of parts of equal length over which guesses are averaged, at most
            T; 0 for a method whose steps make no guesses.
    """

    def __init__(
        self,
        samples: int,
        steps: int,
        z: Float[Tensor, "rows dim"],
        generator: Noise | None,
        stretches: int,
    ):
        self.samples, self.num_steps, self.batch = samples, steps, z.shape[0] // samples
        self.z, self.generator = z, generator
        apart = steps / (LEVELS_KEPT_OF_MORE - 1)
        some = [round(i * apart) for i in range(LEVELS_KEPT_OF_MORE)]
        self.kept: Sequence[int] = range(steps + 1) if steps <= MOST_STEPS_KEPT_WHOLE else some
        self._kept = frozenset(self.kept)
        self._latents: list[Tensor] = []
        self._sums: list[Tensor | None] = [None] * stretches
        self._counts = [0] * stretches

    @property
    def times(self) -> Float[Tensor, " levels"]:
        """T + 1 evenly spaced times of the levels, from 0 to 1."""
        return torch.linspace(0, 1, self.num_steps + 1, device=self.z.device)

    def repeat(self, context: Float[Tensor, "batch width"]) -> Float[Tensor, "rows width"]:
        """Return the images' context, once for each chain."""
        return context.repeat(self.samples, 1)

    def observe(self, i: int, z: Float[Tensor, "rows dim"]) -> None:
        """Record level ``i`` of 0..T."""
        if i in self._kept:
            self._latents.append(z[: self.batch].clone())

    def guess(self, i: int, p: Float[Tensor, "rows classes"]) -> None:
        """Record the class probabilities guessed in step ``i`` of 0..T-1."""
        at = i * len(self._sums) // self.num_steps
        total = self._sums[at]
        self._sums[at] = p.clone() if total is None else total.add_(p)
        self._counts[at] += 1

    def mean(self, p: Float[Tensor, "... rows classes"]) -> Float[Tensor, "... batch classes"]:
        """Return the mean over the chains."""
        return p.unflatten(-2, (self.samples, self.batch)).mean(dim=-3)

    @property
    def path(self) -> Float[Tensor, "stretches batch classes"] | None:
        """Means of the guesses over the chains and each stretch; None without guesses."""
        if not self._counts:
            return None
        sums = torch.stack([s for s in self._sums if s is not None])
        counts = torch.tensor(self._counts, dtype=sums.dtype, device=sums.device)
        return self.mean(sums) / counts[:, None, None]

    @property
    def kept_times(self) -> Float[Tensor, " kept"]:
        """Times of the recorded levels, in [0, 1]."""
        return torch.tensor(self.kept, dtype=torch.float32) / self.num_steps

    @property
    def latents(self) -> Float[Tensor, "kept batch dim"]:
        """Recorded levels of the first chain."""
        return torch.stack(self._latents)

    def nearest(self, weight: Float[Tensor, "classes dim"]) -> Int64[Tensor, "kept batch"]:
        """Return the class of the nearest embedding at each recorded level of the first chain."""
        return torch.stack([nearest_class(z, weight) for z in self._latents])
