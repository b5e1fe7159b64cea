r"""Noise schedules, held as $\gamma = -\log\mathrm{SNR}$.

Time runs one way everywhere: $t = 0$ is noise and $t = T$ the clean embedding, so the signal power
$\bar\alpha_t$ and $\mathrm{SNR}(t) = \bar\alpha_t / (1 - \bar\alpha_t) = e^{-\gamma_t}$ rise and
$\gamma_t$ falls. From $\gamma$ both $\bar\alpha$ = ``sigmoid(-gamma)`` and $1 - \bar\alpha$ =
``sigmoid(gamma)`` keep all their digits at both ends, which no schedule held as $\bar\alpha$ can.

Discrete time has levels $t = 0, \dots, T$. In continuous time $t \in [0, 1]$ and a schedule also
has a slope $\gamma'(t) < 0$; the one that is learned has weights and lives in
:mod:`noprop.continuous_schedules`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "alpha_bar",
    "cosine_gamma",
    "cosine_gamma_at",
    "linear_gamma_at",
    "snr",
    "snr_slope",
]


def cosine_gamma(
    num_blocks: int, *, offset: float = 0.008, epsilon: float = 1e-6
) -> Float[Tensor, " levels"]:
    r"""The fixed cosine schedule, rising from noise to clean.

    $\bar\alpha_t = \cos^2\theta_t$ with $\theta_t = \frac{\pi}{2}\,\frac{1 - t/T + s}{1 + s}$,
    hence $\gamma_t = 2\log\tan\theta_t$.

    Differs from the paper: $\bar\alpha$ is clamped to $[\epsilon, 1 - \epsilon]$. The cosine starts
    at $\bar\alpha_0 = 0$ exactly, where $\gamma$ is infinite; with the default only that level is
    moved.

    Args:
        num_blocks: $T$, at least 1.
        offset: $s$, above 0; it keeps the last level off $\bar\alpha = 1$.
        epsilon: bound on $\bar\alpha$ and $1 - \bar\alpha$, in (0, 0.5).

    Returns:
        $\gamma_t$ for $t = 0, \dots, T$, float64, shape (T + 1,), falling strictly.

    Raises:
        ValueError: If an argument is out of range, or the clamp makes two levels equal.
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
    if not offset > 0:
        raise ValueError(f"offset must be above 0, got {offset}")
    if not 0 < epsilon < 0.5:
        raise ValueError(f"epsilon must lie in (0, 0.5), got {epsilon}")
    t = torch.arange(num_blocks + 1, dtype=torch.float64) / num_blocks
    theta = math.pi / 2 * (1 - t + offset) / (1 + offset)
    bound = math.log((1 - epsilon) / epsilon)
    gamma = (2 * torch.log(torch.tan(theta).abs())).clamp(-bound, bound)
    if not (gamma.diff() < 0).all():
        raise ValueError(
            f"epsilon={epsilon} makes neighbouring levels of a schedule of {num_blocks} blocks "
            "equal; it must be smaller"
        )
    return gamma


def linear_gamma_at(
    t: Float[Tensor, "*times"], noise: float, clean: float
) -> tuple[Float[Tensor, "*times"], Float[Tensor, "*times"]]:
    r"""$\gamma(t)$ on a straight line from ``noise`` at t = 0 to ``clean`` at t = 1, and its slope.

    Args:
        t: times in [0, 1].
        noise: $\gamma(0)$.
        clean: $\gamma(1)$, below ``noise``.

    Returns:
        $\gamma(t)$ and $\gamma'(t)$, each of the shape of ``t``.
    """
    return noise + (clean - noise) * t, torch.full_like(t, clean - noise)


def cosine_gamma_at(
    t: Float[Tensor, "*times"], noise: float, clean: float
) -> tuple[Float[Tensor, "*times"], Float[Tensor, "*times"]]:
    r"""The cosine schedule in continuous time, from ``noise`` at t = 0 to ``clean`` at t = 1.

    $\bar\alpha = \cos^2\theta(t)$ with $\theta$ on a straight line between the angles of both ends:
    $\gamma = 2\log\tan\theta$ and $\gamma' = 4\theta' / \sin 2\theta$. Choosing the ends by their
    $\gamma$ needs no clamp, under which the slope would be 0.

    Args:
        t: times in [0, 1].
        noise: $\gamma(0)$.
        clean: $\gamma(1)$, below ``noise``.

    Returns:
        $\gamma(t)$ and $\gamma'(t)$, each of the shape of ``t``.
    """
    first, last = (math.atan(math.exp(end / 2)) for end in (noise, clean))
    theta = first + (last - first) * t
    return 2 * torch.log(torch.tan(theta)), 4 * (last - first) / torch.sin(2 * theta)


def alpha_bar(gamma: Float[Tensor, "*levels"]) -> Float[Tensor, "*levels"]:
    r"""Signal power $\bar\alpha$ in (0, 1); the complement is ``alpha_bar(-gamma)``."""
    return torch.sigmoid(-gamma)


def snr(gamma: Float[Tensor, "*levels"]) -> Float[Tensor, "*levels"]:
    r"""Signal-to-noise ratio $\bar\alpha / (1 - \bar\alpha) = e^{-\gamma}$, a ratio of powers."""
    return torch.exp(-gamma)


def snr_slope(
    gamma: Float[Tensor, "*times"], slope: Float[Tensor, "*times"]
) -> Float[Tensor, "*times"]:
    r"""$\mathrm{SNR}'(t) = -\gamma'(t)\, e^{-\gamma(t)}$, above 0 where $\gamma$ falls (Eq. 9)."""
    return -slope * torch.exp(-gamma)
