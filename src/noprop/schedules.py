r"""Noise schedules, held as $\gamma = -\log\mathrm{SNR}$.

Time runs one way everywhere: $t = 0$ is noise and $t = T$ the clean embedding, so the signal power
$\bar\alpha_t$ and $\mathrm{SNR}(t) = \bar\alpha_t / (1 - \bar\alpha_t) = e^{-\gamma_t}$ rise and
$\gamma_t$ falls. From $\gamma$ both $\bar\alpha$ = ``sigmoid(-gamma)`` and $1 - \bar\alpha$ =
``sigmoid(gamma)`` keep all their digits at both ends, which no schedule held as $\bar\alpha$ can.

Discrete time has levels $t = 0, \dots, T$. In continuous time $t \in [0, 1]$, and a schedule is a
module that maps times to $\gamma(t)$ and its slope $\gamma'(t) < 0$ (Appendix B). So
$\mathrm{SNR}'(t)$ is exact, and a learned schedule is trained through both. $\gamma(0)$ is the
noise end, the paper's $\gamma_1$; $\gamma(1)$ is the clean end, its $\gamma_0$.
"""

import copy
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "alpha_bar",
    "snr",
    "snr_slope",
    "cosine_gamma",
    "cosine_gamma_at",
    "linear_gamma_at",
    "ContinuousSchedule",
    "CosineSchedule",
    "LearnedSchedule",
    "LinearSchedule",
]

NUM_SIGMOIDS = 64
STEEPNESS = 8.0


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
        epsilon: Bound on $\bar\alpha$ and $1 - \bar\alpha$, in (0, 0.5).

    Returns:
        $\gamma_t$ for $t = 0, \dots, T$, float64, shape (T + 1,), falling strictly.

    Raises:
        ValueError: If an argument is out of range, or the clamp makes two levels equal.

    Example:
        >>> gamma = cosine_gamma(4)
        >>> alpha_bar(gamma).round(decimals=4).tolist()  # from noise to clean
        [0.0, 0.1442, 0.4938, 0.8469, 0.9998]
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
        t: Times in [0, 1].
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
        t: Times in [0, 1].
        noise: $\gamma(0)$.
        clean: $\gamma(1)$, below ``noise``.

    Returns:
        $\gamma(t)$ and $\gamma'(t)$, each of the shape of ``t``.
    """
    first, last = (math.atan(math.exp(end / 2)) for end in (noise, clean))
    theta = first + (last - first) * t
    return 2 * torch.log(torch.tan(theta)), 4 * (last - first) / torch.sin(2 * theta)


class ContinuousSchedule(nn.Module, ABC):
    r"""A map from t to $\gamma(t)$ and $\gamma'(t) < 0$, in the precision of t.

    Args:
        noise: $\gamma(0)$, before training.
        clean: $\gamma(1)$, before training, below ``noise``.
    """

    def __init__(self, noise: float, clean: float):
        super().__init__()
        self.noise, self.clean = noise, clean

    @abstractmethod
    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""Return $\gamma(t)$ and $\gamma'(t)$ for t in [0, 1]."""

    @torch.no_grad()
    def levels(self, steps: int) -> Float[Tensor, " levels"]:
        r"""Return $\gamma(i/T)$ for $i = 0, \dots, T$, float64 on the CPU, shape (T + 1,)."""
        return self._on_cpu()(torch.linspace(0, 1, steps + 1, dtype=torch.float64))[0]

    @torch.no_grad()
    def facts(self) -> dict[str, float | list[float]]:
        r"""Return $\bar\alpha$ at both ends, the greatest $\mathrm{SNR}'$ and $\gamma$ at 21 times.

        An exploding weight or a collapsing schedule shows in these numbers.
        """
        gamma, slope = self._on_cpu()(torch.linspace(0, 1, 1001, dtype=torch.float64))
        return {
            "alpha_bar_0": torch.sigmoid(-gamma[0]).item(),
            "alpha_bar_1": torch.sigmoid(-gamma[-1]).item(),
            "max_snr_slope": snr_slope(gamma, slope).max().item(),
            "gamma": [round(value, 4) for value in gamma[::50].tolist()],
        }

    def _on_cpu(self) -> "ContinuousSchedule":
        """Return this schedule on the CPU, because MPS has no float64."""
        elsewhere = any(p.device.type != "cpu" for p in self.parameters())
        return copy.deepcopy(self).cpu() if elsewhere else self


class LinearSchedule(ContinuousSchedule):
    """A straight line from ``noise`` to ``clean``."""

    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        """See :func:`linear_gamma_at`."""
        return linear_gamma_at(t, self.noise, self.clean)


class CosineSchedule(ContinuousSchedule):
    """The cosine between ``noise`` and ``clean``."""

    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        """See :func:`cosine_gamma_at`."""
        return cosine_gamma_at(t, self.noise, self.clean)


class LearnedSchedule(ContinuousSchedule):
    r"""$\gamma(t) = \gamma_0 + (\gamma_1 - \gamma_0)(1 - \bar\gamma(t))$ (Eqs. 65-67).

    $\bar\gamma(t) = (\tilde\gamma(t) - \tilde\gamma(0)) / (\tilde\gamma(1) - \tilde\gamma(0))$,
    where $\tilde\gamma(t) = w_0 t + \sum_k w_k\, \sigma(v_k t - b_k)$ is a network of two layers.
    Its weights are positive as softplus of what is trained, not by a clamp, so $\gamma$ falls for
    any value of the parameters.

    Differs from the paper: the term $w_0 t$ (as in Kingma et al., 2021) keeps the slope from
    vanishing where every sigmoid is flat; and each end is its start plus ``room`` times a tanh, so
    that no weight of the loss is ever infinite. The start is nearly a straight line.

    Args:
        noise: $\gamma_1 = \gamma(0)$ at the start of training.
        clean: $\gamma_0 = \gamma(1)$ at the start of training.
        room: Greatest change of each end, above 0 and below half of ``noise - clean``.

    Raises:
        ValueError: If the two ends could become equal.
    """

    def __init__(self, noise: float, clean: float, room: float = 3.0):
        super().__init__(noise, clean)
        if not 0 < 2 * room < noise - clean:
            raise ValueError(
                f"room must be above 0 and below half of noise - clean = {noise - clean:g}, "
                f"got {room}"
            )
        self.room = room
        self.ends = nn.Parameter(torch.zeros(2))
        self.skip = nn.Parameter(_inverse_softplus(torch.tensor(1.0)))
        self.outer = nn.Parameter(_inverse_softplus(torch.full((NUM_SIGMOIDS,), 1 / NUM_SIGMOIDS)))
        self.inner = nn.Parameter(_inverse_softplus(torch.full((NUM_SIGMOIDS,), STEEPNESS)))
        centres = (torch.arange(NUM_SIGMOIDS) + 0.5) / NUM_SIGMOIDS
        self.bias = nn.Parameter(STEEPNESS * centres)

    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""Return $\gamma(t)$ and, in closed form, $\gamma'(t)$."""
        ends = self.ends.to(t.dtype).tanh() * self.room
        noise, clean = self.noise + ends[0], self.clean + ends[1]
        rise, slope = self._rise(t)
        whole = self._rise(torch.ones(1, dtype=t.dtype, device=t.device))[0]
        gamma = noise - (noise - clean) * rise / whole
        return gamma, -(noise - clean) * slope / whole

    def _rise(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""Return $\tilde\gamma(t) - \tilde\gamma(0)$ and its derivative, which is above 0."""
        skip, outer, inner = (
            F.softplus(p.to(t.dtype)) for p in (self.skip, self.outer, self.inner)
        )
        bias, step = self.bias.to(t.dtype), t[:, None] * inner
        active, rest = torch.sigmoid(step - bias), torch.sigmoid(bias - step)
        # As differences of sigmoids these lose all digits where every unit is flat, and float32
        # then divides 0 by 0: sigma(p) - sigma(q) = sigma(p) sigma(-q) (1 - exp(q - p)).
        gain = active * torch.sigmoid(bias) * -torch.expm1(-step)
        rise = skip * t + (outer * gain).sum(dim=1)
        return rise, skip + (outer * inner * active * rest).sum(dim=1)


def _inverse_softplus(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x with log(1 + exp(x)) = value, for values above 0."""
    return value + torch.log(-torch.expm1(-value))
