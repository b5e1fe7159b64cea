r"""How far a denoiser's guess is from the label, and what that weighs at each noise level.

The bound's own choice (Eqs. 8, 9) is the squared error of the embedding, weighted by the slope of
the signal-to-noise ratio. Nearly all of that weight lies where $z$ already tells the label; the
other choices here put it where there is something to learn.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from noprop.embeddings import Embedding

__all__ = [
    "Objective",
    "TimeSampling",
    "Weighting",
    "denoising_error",
    "draw_times",
    "level_weight",
]

Weighting = Literal["snr", "uniform", "min-snr"]
Objective = Literal["l2", "cross-entropy"]
TimeSampling = Literal["uniform", "stratified"]

MOST_SNR = 5.0


def denoising_error(
    logits: Float[Tensor, "batch classes"],
    y: Int64[Tensor, " batch"],
    embedding: Embedding,
    objective: Objective = "l2",
) -> Float[Tensor, " batch"]:
    r"""$\|\hat u - u_y\|^2$ of each example, or the cross-entropy of the logits in nats.

    Differs from the paper: ``cross-entropy`` is not a term of the bound. Its minimiser is
    $p(y|z, x)$, which also minimises the squared error: alone where the embeddings are affinely
    independent, as one-hot ones are.
    """
    if objective == "cross-entropy":
        return F.cross_entropy(logits.float(), y, reduction="none")
    return (embedding.expectation(logits) - embedding(y)).square().sum(dim=1)


def level_weight(
    weighting: Weighting, gamma: Float[Tensor, "*levels"], bound: Float[Tensor, "*levels"]
) -> Float[Tensor, "*levels"]:
    r"""What the error at a level weighs, before $\eta$.

    Args:
        weighting: ``snr`` for the bound's weight, ``uniform`` for ½ everywhere, ``min-snr`` for
            ½ min(SNR, 5) (Hang et al., 2023).
        gamma: -log SNR of the levels.
        bound: the bound's own weights, $\frac12\mathrm{SNR}'(t)$ or
            $\frac T2(\mathrm{SNR}(t)-\mathrm{SNR}(t-1))$.
    """
    if weighting == "snr":
        return bound
    if weighting == "uniform":
        return torch.full_like(gamma, 0.5)
    return 0.5 * torch.exp(-gamma).clamp(max=MOST_SNR)


def draw_times(
    batch: int, sampling: TimeSampling, generator: torch.Generator
) -> Float[Tensor, " batch"]:
    """Times t ~ U(0, 1), shape (B,), on the generator's device.

    Args:
        batch: B.
        sampling: ``uniform`` draws each apart (Algorithms 2, 3). ``stratified`` draws one shift and
            spaces the batch evenly (Kingma et al., 2021): each t is still uniform, and the mean
            over a batch varies less.
        generator: source of the draws.
    """
    device = generator.device
    if sampling == "uniform":
        return torch.rand(batch, generator=generator, device=device)
    shift = torch.rand((), generator=generator, device=device)
    t = (shift + torch.arange(batch, device=device) / batch).remainder(1)
    return t[torch.randperm(batch, generator=generator, device=device)]
