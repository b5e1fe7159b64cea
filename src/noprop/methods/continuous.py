"""What chains of a network of continuous time need before their first step."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from noprop.methods.chains import STRETCHES, ChainRecord, check_samples, start
from noprop.networks import ContinuousBlock

__all__ = ["OpenChains", "features", "open_chains"]


@dataclass(frozen=True)
class OpenChains:
    """K chains of T steps over B images; row k·B + i is chain k of image i.

    Attributes:
        z: z_0, standard normal, or 0 for the mean chain, shape (K·B, d).
        context: what the network takes from x, shape (K·B, 256).
        times: t of the T + 1 levels, in [0, 1].
        time_contexts: what the network takes from t, a row for each level, shape (T + 1, 256).
        generator: of the noise; None for the mean chain.
        record: of the chains.
    """

    z: Float[Tensor, "rows dim"]
    context: Float[Tensor, "rows width"]
    times: Float[Tensor, " levels"]
    time_contexts: Float[Tensor, "levels time_width"]
    generator: torch.Generator | None
    record: ChainRecord


def features(
    network: ContinuousBlock, x: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch width"]:
    """What the network takes from x: the only part of prediction with convolutions."""
    return network.context(x).float()


def open_chains(
    network: ContinuousBlock,
    weight: Float[Tensor, "classes dim"],
    context: Float[Tensor, "batch width"],
    generator: torch.Generator,
    *,
    steps: int,
    samples: int,
    noise: bool,
) -> OpenChains:
    """Chains at t = 0, whose guesses are averaged over ten stretches.

    Args:
        network: of the chain.
        weight: W_Embed.
        context: the images' :func:`features`.
        generator: of all noise, on their device.
        steps: T.
        samples: K; without noise there is one chain.
        noise: whether the chains draw.

    Raises:
        ValueError: If ``samples`` is out of range.
    """
    check_samples(samples)
    chains, draws = (samples, generator) if noise else (1, None)
    batch, device = context.shape[0], context.device
    times = torch.linspace(0, 1, steps + 1, device=device)
    return OpenChains(
        start(chains, batch, weight.shape[1], draws, device),
        context.repeat(chains, 1),
        times,
        network.time_context(times),
        draws,
        ChainRecord(steps, chains, batch, STRETCHES),
    )
