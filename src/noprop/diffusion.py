r"""The forward process on label embeddings, its reverse step, and the bound's terms (Eqs. 3-8).

$q(z_t | y) = \mathcal{N}(\sqrt{\bar\alpha_t}\, u_y, (1 - \bar\alpha_t) I)$ (Eq. 6), with
$\bar\alpha_t = \prod_{s=t}^{T} \alpha_s$ rising in $t$. Block $t$ of the chain reads $z_{t-1}$ and
guesses $u_y$; the generative step then mixes the guess into the latent (Eq. 3). Schedules come as
$\gamma$ (see :mod:`noprop.schedules`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "StepCoefficients",
    "TimeSampling",
    "Weighting",
    "denoising_weights",
    "draw_times",
    "level_weight",
    "prior_kl",
    "sample_latent",
    "step_coefficients",
]

Weighting = Literal["snr", "uniform", "min-snr"]
TimeSampling = Literal["uniform", "stratified"]

MIN_SNR_CLAMP = 5.0


@dataclass(frozen=True)
class StepCoefficients:
    r"""$z_t = a_t \hat u + b_t z_{t-1} + \sqrt{c_t}\,\epsilon$; ``c`` is a variance."""

    a: Float[Tensor, " steps"]
    b: Float[Tensor, " steps"]
    c: Float[Tensor, " steps"]

    def __len__(self) -> int:
        return self.a.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "StepCoefficients":
        """The same coefficients on another device, in another precision."""
        return StepCoefficients(*(v.to(device, dtype) for v in (self.a, self.b, self.c)))


def step_coefficients(gamma: Float[Tensor, " levels"]) -> StepCoefficients:
    r"""Coefficients of one step $z_t = a_t \hat u + b_t z_{t-1} + \sqrt{c_t}\,\epsilon$ (Eq. 3).

    By Eq. 6, with $r_t = 1 - \mathrm{SNR}(t-1)/\mathrm{SNR}(t)$: $a_t = \sqrt{\bar\alpha_t}\, r_t$,
    $b_t = \sqrt{\bar\alpha_t / \bar\alpha_{t-1}}\, (1 - r_t)$ and $c_t = (1 - \bar\alpha_t)\, r_t$.

    Args:
        gamma: $-\log\mathrm{SNR}(t)$ for $t = 0, \dots, T$, falling strictly, shape (T + 1,).

    Returns:
        $a_t$, $b_t$ and the variance $c_t$; entry ``t - 1`` leads from $t - 1$ to $t$.

    Raises:
        ValueError: If ``gamma`` does not fall strictly, for then a step would add noise.

    Example:
        A step with the true embedding leads from one marginal (Eq. 6) to the next:

        >>> from noprop.schedules import alpha_bar, cosine_gamma
        >>> gamma = cosine_gamma(10)
        >>> k, power = step_coefficients(gamma), alpha_bar(gamma)
        >>> torch.allclose(k.a + k.b * power[:-1].sqrt(), power[1:].sqrt())
        True
        >>> torch.allclose(k.b**2 * (1 - power[:-1]) + k.c, 1 - power[1:])
        True
    """
    step = gamma.diff()
    if gamma.numel() < 2 or not bool((step < 0).all()):
        raise ValueError(
            f"gamma must fall strictly from noise to clean over at least two levels, "
            f"got {gamma.tolist()}"
        )
    # Eq. 6 as printed subtracts near-equal numbers: at T = 1000 float32 keeps three digits of the
    # cosine schedule, and none of one that ends at 1 - alpha_bar = 2e-6.
    r = -torch.expm1(step)
    alpha_bar = torch.sigmoid(-gamma)
    a = alpha_bar[1:].sqrt() * r
    b = (alpha_bar[1:] / alpha_bar[:-1]).sqrt() * step.exp()
    c = torch.sigmoid(gamma[1:]) * r
    return StepCoefficients(a, b, c)


def sample_latent(
    u: Float[Tensor, "batch dim"],
    gamma: Float[Tensor, ""] | Float[Tensor, " batch"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch dim"]:
    r"""Draw $z \sim q(z | y) = \mathcal{N}(\sqrt{\bar\alpha}\, u_y, (1 - \bar\alpha) I)$ (Eq. 6).

    Args:
        u: Embeddings of the batch's labels, shape (B, d).
        gamma: $-\log\mathrm{SNR}$ of the level: a scalar shared by the batch, or one each, (B,).
        generator: Source of the noise, on the device of ``u``.

    Example:
        At log SNR 0, signal and noise have the same power: the mean is √½ u.

        >>> u = torch.tensor([[1.0, -1.0]]).expand(100_000, 2)
        >>> z = sample_latent(u, torch.tensor(0.0), torch.Generator().manual_seed(0))
        >>> z.mean(dim=0).round(decimals=1), z.var(dim=0).round(decimals=1)
        (tensor([ 0.7000, -0.7000]), tensor([0.5000, 0.5000]))
    """
    noise = torch.empty_like(u).normal_(generator=generator)
    gamma = gamma[..., None]  # (B, 1): a level of its own for each row
    return torch.sigmoid(-gamma).sqrt() * u + torch.sigmoid(gamma).sqrt() * noise


def denoising_weights(gamma: Float[Tensor, " levels"], eta: float) -> Float[Tensor, " steps"]:
    r"""Weights $\frac{T}{2}\eta\,(\mathrm{SNR}(t) - \mathrm{SNR}(t-1))$ of the errors (Eq. 8).

    Written $\frac{T}{2}\eta\,\mathrm{SNR}(t)\, r_t$, so that neighbouring levels lose no digits.
    With $\eta = 1$, weight $t$ times the mean squared error is $T$ times the KL term of step $t$
    (Eqs. 51-56).

    Args:
        gamma: $-\log\mathrm{SNR}(t)$ for $t = 0, \dots, T$, shape (T + 1,).
        eta: $\eta$, the paper's weight (0.1 for DT).

    Returns:
        Shape (T,), positive whenever ``gamma`` falls; entry ``t - 1`` belongs to block $t$.

    Example:
        Nearly all of the bound's weight belongs to the last block:

        >>> from noprop.schedules import cosine_gamma
        >>> denoising_weights(cosine_gamma(4), eta=0.1).round(decimals=2).tolist()
        [0.03, 0.16, 0.91, 1285.62]
    """
    step = gamma.diff()
    return step.shape[0] / 2 * eta * torch.exp(-gamma[1:]) * -torch.expm1(step)


def level_weight(
    weighting: Weighting, gamma: Float[Tensor, "*levels"], bound: Float[Tensor, "*levels"]
) -> Float[Tensor, "*levels"]:
    r"""Return the weight of the error at a level, before $\eta$.

    The bound's own weight (Eqs. 8, 9) is the slope of the signal-to-noise ratio. Nearly all of it
    lies where $z$ already tells the label; the other weights lie where there is something to learn.

    Args:
        weighting: ``snr`` for the bound's weight, ``uniform`` for ½ everywhere, ``min-snr`` for
            ½ min(SNR, 5) (Hang et al., 2023).
        gamma: -log SNR of the levels.
        bound: The bound's own weights, $\frac12\mathrm{SNR}'(t)$ or
            $\frac T2(\mathrm{SNR}(t)-\mathrm{SNR}(t-1))$.
    """
    if weighting == "snr":
        return bound
    if weighting == "uniform":
        return torch.full_like(gamma, 0.5)
    return 0.5 * torch.exp(-gamma).clamp(max=MIN_SNR_CLAMP)


def prior_kl(u: Float[Tensor, "batch dim"], gamma: Float[Tensor, ""]) -> Float[Tensor, " batch"]:
    r"""$\mathrm{KL}(q(z_0 | y)\,\|\,\mathcal{N}(0, I))$ of each example, in nats (Eq. 8).

    $\frac12 [\bar\alpha_0 \|u_y\|^2 - d\,\bar\alpha_0 - d \log(1 - \bar\alpha_0)]$; the last two
    terms cancel to second order in $\bar\alpha_0$.

    Args:
        u: Embeddings of the batch's labels, shape (B, d).
        gamma: $\gamma_0$, a scalar.
    """
    alpha_bar = torch.sigmoid(-gamma)
    # log(1 - alpha_bar) = log sigmoid(gamma) = -log1p(exp(-gamma)).
    spread = -torch.nn.functional.logsigmoid(gamma) - alpha_bar
    return 0.5 * (alpha_bar * u.square().sum(dim=1) + u.shape[1] * spread)


def draw_times(
    batch: int, sampling: TimeSampling, generator: torch.Generator
) -> Float[Tensor, " batch"]:
    """Draw times t ~ U(0, 1), shape (B,), on the generator's device.

    Args:
        batch: B.
        sampling: ``uniform`` draws each time separately (Algorithms 2, 3). ``stratified`` draws one
            shift and spaces the batch evenly (Kingma et al., 2021): each t is still uniform, and
            the mean over a batch varies less.
        generator: Source of the draws.
    """
    device = generator.device
    if sampling == "uniform":
        return torch.rand(batch, generator=generator, device=device)
    shift = torch.rand((), generator=generator, device=device)
    t = (shift + torch.arange(batch, device=device) / batch).remainder(1)
    return t[torch.randperm(batch, generator=generator, device=device)]
