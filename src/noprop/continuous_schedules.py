r"""Noise schedules in continuous time: $\gamma(t)$ and its slope for $t \in [0, 1]$ (Appendix B).

Each is a module that maps times to $(\gamma, \gamma')$, so that $\mathrm{SNR}'(t)$ is exact and a
learned schedule is trained through both. $\gamma(0)$ is the noise end, the paper's $\gamma_1$;
$\gamma(1)$ is the clean end, its $\gamma_0$.
"""

import copy
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from noprop.schedules import cosine_gamma_at, linear_gamma_at, snr_slope

__all__ = ["ContinuousSchedule", "CosineSchedule", "LearnedSchedule", "LinearSchedule"]

HIDDEN = 64
STEEPNESS = 8.0


class ContinuousSchedule(nn.Module, ABC):
    r"""Maps t to $\gamma(t)$ and $\gamma'(t) < 0$, in the precision of t."""

    @abstractmethod
    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""$\gamma(t)$ and $\gamma'(t)$ for t in [0, 1]."""

    @torch.no_grad()
    def levels(self, steps: int) -> Float[Tensor, " levels"]:
        r"""$\gamma(i/T)$ for $i = 0, \dots, T$, float64 on the CPU, shape (T + 1,)."""
        return self._on_cpu()(torch.linspace(0, 1, steps + 1, dtype=torch.float64))[0]

    @torch.no_grad()
    def facts(self) -> dict[str, float | list[float]]:
        r"""What an exploding weight or a collapsing schedule shows in.

        $\bar\alpha$ at both ends, the greatest $\mathrm{SNR}'$ and $\gamma$ at 21 times.
        """
        gamma, slope = self._on_cpu()(torch.linspace(0, 1, 1001, dtype=torch.float64))
        return {
            "alpha_bar_0": torch.sigmoid(-gamma[0]).item(),
            "alpha_bar_1": torch.sigmoid(-gamma[-1]).item(),
            "max_snr_slope": snr_slope(gamma, slope).max().item(),
            "gamma": [round(value, 4) for value in gamma[::50].tolist()],
        }

    def _on_cpu(self) -> "ContinuousSchedule":
        """This schedule where float64 is: MPS has none."""
        elsewhere = any(p.device.type != "cpu" for p in self.parameters())
        return copy.deepcopy(self).cpu() if elsewhere else self


class LinearSchedule(ContinuousSchedule):
    """A straight line from ``noise`` to ``clean``."""

    def __init__(self, noise: float, clean: float):
        super().__init__()
        self.noise, self.clean = noise, clean

    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        """See :func:`noprop.schedules.linear_gamma_at`."""
        return linear_gamma_at(t, self.noise, self.clean)


class CosineSchedule(ContinuousSchedule):
    """The cosine between ``noise`` and ``clean``."""

    def __init__(self, noise: float, clean: float):
        super().__init__()
        self.noise, self.clean = noise, clean

    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        """See :func:`noprop.schedules.cosine_gamma_at`."""
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
        room: how far each end may move, above 0 and below half of ``noise - clean``.

    Raises:
        ValueError: If the ends could meet.
    """

    def __init__(self, noise: float, clean: float, room: float = 3.0):
        super().__init__()
        if not 0 < 2 * room < noise - clean:
            raise ValueError(
                f"room must be above 0 and below half of noise - clean = {noise - clean:g}, "
                f"got {room}"
            )
        self.noise, self.clean, self.room = noise, clean, room
        self.ends = nn.Parameter(torch.zeros(2))
        self.skip = nn.Parameter(inverse_softplus(torch.tensor(1.0)))
        self.outer = nn.Parameter(inverse_softplus(torch.full((HIDDEN,), 1 / HIDDEN)))
        self.inner = nn.Parameter(inverse_softplus(torch.full((HIDDEN,), STEEPNESS)))
        centres = (torch.arange(HIDDEN) + 0.5) / HIDDEN
        self.bias = nn.Parameter(STEEPNESS * centres)

    def forward(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""$\gamma(t)$ and, in closed form, $\gamma'(t)$."""
        ends = self.ends.to(t.dtype).tanh() * self.room
        noise, clean = self.noise + ends[0], self.clean + ends[1]
        rise, slope = self._rise(t)
        whole = self._rise(torch.ones(1, dtype=t.dtype, device=t.device))[0]
        gamma = noise - (noise - clean) * rise / whole
        return gamma, -(noise - clean) * slope / whole

    def _rise(
        self, t: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        r"""$\tilde\gamma(t) - \tilde\gamma(0)$ and its derivative, above 0."""
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


def inverse_softplus(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """X with log(1 + exp(x)) = value, for values above 0."""
    return value + torch.log(-torch.expm1(-value))
