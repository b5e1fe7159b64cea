r"""Ways from noise to a label embedding. Each visits the levels and calls a denoiser or a velocity.

Both are called with the index of a level and the latent there. Everything that depends on $x$ and
$t$ alone was prepared before, once for all steps. ``observe`` is called with the index and the
latent of every level, to record a trajectory.

The chain of Eq. 3 draws noise at every step (``ancestral``). The probability-flow ODE has the same
marginals and draws none: with $\lambda = -\gamma = \log\mathrm{SNR}$ for its time,

.. math:: \frac{dz}{d\lambda} = \tfrac12 (\sqrt{\bar\alpha}\, \hat u - \bar\alpha z),

which is
$\dot z = \frac{\bar\alpha'}{2\sqrt{\bar\alpha}(1-\bar\alpha)}(\hat u - \sqrt{\bar\alpha} z)$ over
$\dot\lambda = \bar\alpha' / (\bar\alpha(1 - \bar\alpha))$: one equation for every schedule.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Denoiser",
    "Noise",
    "Observer",
    "Velocity",
    "ancestral",
    "euler",
    "heun",
    "probability_flow",
]

Denoiser = Callable[[int, Tensor], Tensor]
"""(i, z at level i) to û; z, û: (B, d). In a chain, step ``i`` leads from level i to i + 1."""

Velocity = Callable[[int, Tensor], Tensor]
"""(i, z at level i) to dz/ds at the time s_i; z, dz/ds: (B, d)."""

Observer = Callable[[int, Tensor], None]

Noise = torch.Generator | Callable[[Tensor], Tensor]
"""Source of standard normal noise: a generator, or a function of the latent it is added to."""


def ancestral(
    denoise: Denoiser,
    z: Float[Tensor, "batch dim"],
    a: Float[Tensor, " steps"],
    b: Float[Tensor, " steps"],
    c: Float[Tensor, " steps"],
    generator: Noise | None = None,
    observe: Observer | None = None,
) -> Float[Tensor, "batch dim"]:
    r"""The generative chain $z_t = a_t \hat u_t(z_{t-1}) + b_t z_{t-1} + \sqrt{c_t}\,\epsilon$.

    The step of Eq. 3.

    Args:
        denoise: The guess of each step.
        z: $z_0$, shape (B, d): standard normal for a sample from the model.
        a: Weight $a_t$ of the guess in step $t$, shape (T,).
        b: Weight $b_t$ of the latent before it, shape (T,).
        c: Variance $c_t$ of the noise added, shape (T,).
        generator: Source of the noise: a generator on the device of ``z``, or a function from a
            latent to noise of its shape, which an exported graph needs. Without one the chain is
            the *mean chain*: every step returns the mean of its Gaussian.
        observe: Called with $t$ and $z_t$ for $t = 0, \dots, T$.

    Returns:
        $z_T$, shape (B, d).

    Example:
        A denoiser that always guesses one embedding leads the mean chain to it:

        >>> from noprop.diffusion import step_coefficients
        >>> from noprop.schedules import cosine_gamma
        >>> u, k = torch.tensor([[0.0, 1.0]]), step_coefficients(cosine_gamma(10).float())
        >>> ancestral(lambda i, z: u, torch.zeros(1, 2), k.a, k.b, k.c).round(decimals=2)
        tensor([[0., 1.]])
    """
    deviation = c.sqrt()
    if observe:
        observe(0, z)
    for i in range(a.shape[0]):
        z = a[i] * denoise(i, z) + b[i] * z
        if generator is not None:
            if isinstance(generator, torch.Generator):
                noise = torch.empty_like(z).normal_(generator=generator)
            else:
                noise = generator(z)
            z = z + deviation[i] * noise
        if observe:
            observe(i + 1, z)
    return z


def probability_flow(denoise: Denoiser, gamma: Float[Tensor, " levels"]) -> Velocity:
    r"""The probability-flow ODE of a denoiser, in the time $\lambda = -\gamma$ (see above).

    Args:
        denoise: The guess at each level.
        gamma: $\gamma$ of the levels, in the precision of the latents, shape (T + 1,).

    Returns:
        $dz/d\lambda$, for :func:`euler` or :func:`heun` at the times ``-gamma``.
    """
    power = torch.sigmoid(-gamma)
    root = power.sqrt()
    return lambda i, z: 0.5 * (root[i] * denoise(i, z) - power[i] * z)


def euler(
    velocity: Velocity,
    z: Float[Tensor, "batch dim"],
    times: Float[Tensor, " levels"],
    observe: Observer | None = None,
) -> Float[Tensor, "batch dim"]:
    """Follow dz/ds with one evaluation a step: order 1.

    Args:
        velocity: dz/ds at a level.
        z: The latent at the first level, shape (B, d).
        times: s of the levels, rising, shape (T + 1,).
        observe: Called with each level.

    Returns:
        The latent at the last level, shape (B, d).
    """
    step = times.diff()
    if observe:
        observe(0, z)
    for i in range(len(step)):
        z = z + step[i] * velocity(i, z)
        if observe:
            observe(i + 1, z)
    return z


def heun(
    velocity: Velocity,
    z: Float[Tensor, "batch dim"],
    times: Float[Tensor, " levels"],
    observe: Observer | None = None,
) -> Float[Tensor, "batch dim"]:
    """Follow dz/ds with two evaluations a step, the trapezoid on Euler's guess: order 2.

    Arguments as for :func:`euler`.

    Example:
        Twice the steps divide Euler's error by 2, and Heun's by 4. Here dz/ds = z, so z(1) = e:

        >>> import math
        >>> def error(method, steps):
        ...     times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        ...     return method(lambda i, z: z, torch.ones(1, 1).double(), times).item() - math.e
        >>> [round(error(method, 100) / error(method, 200), 1) for method in (euler, heun)]
        [2.0, 4.0]
    """
    step = times.diff()
    if observe:
        observe(0, z)
    for i in range(len(step)):
        first = velocity(i, z)
        second = velocity(i + 1, z + step[i] * first)
        z = z + step[i] * 0.5 * (first + second)
        if observe:
            observe(i + 1, z)
    return z
