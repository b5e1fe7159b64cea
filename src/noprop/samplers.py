r"""Ways from noise to a label embedding. Each walks the levels, asking a denoiser.

A denoiser is called with the index of the step and the latent before it, and returns the guess
$\hat u$ of the embedding; whatever it reads of $x$ it has prepared beforehand, once for all steps.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Denoiser", "ancestral"]

Denoiser = Callable[[int, Tensor], Tensor]
"""(step, z) to û: step ``i`` of 0..T-1 leads from level ``i`` to ``i + 1``; z, û: (B, d)."""


def ancestral(
    denoise: Denoiser,
    z: Float[Tensor, "batch dim"],
    a: Float[Tensor, " steps"],
    b: Float[Tensor, " steps"],
    c: Float[Tensor, " steps"],
    generator: torch.Generator | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "batch dim"]:
    r"""The generative chain $z_t = a_t \hat u_t(z_{t-1}) + b_t z_{t-1} + \sqrt{c_t}\,\epsilon$.

    The step of Eq. 3.

    Args:
        denoise: the guess of each step.
        z: $z_0$, shape (B, d): standard normal for a sample from the model.
        a: weight $a_t$ of the guess in step $t$, shape (T,).
        b: weight $b_t$ of the latent before it, shape (T,).
        c: variance $c_t$ of the noise added, shape (T,).
        generator: source of the noise, on the device of ``z``. Without one the chain is the *mean
            chain*: every step returns the mean of its Gaussian.
        observe: called with $t$ and $z_t$ for $t = 0, \dots, T$, to record a trajectory.

    Returns:
        $z_T$, shape (B, d).
    """
    deviation = c.sqrt()
    if observe:
        observe(0, z)
    for i in range(a.shape[0]):
        z = a[i] * denoise(i, z) + b[i] * z
        if generator is not None:
            z = z + deviation[i] * torch.empty_like(z).normal_(generator=generator)
        if observe:
            observe(i + 1, z)
    return z
