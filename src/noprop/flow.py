r"""Flow matching on label embeddings: a Gaussian path from noise to $u_y$ (Eqs. 10-12).

$z_0 \sim \mathcal{N}(0, I)$ is noise, $z_1 = u_y$ the clean embedding, and between them
$z_t \sim \mathcal{N}(t z_1 + (1 - t) z_0, \sigma^2 I)$, along which the velocity is $z_1 - z_0$.
Many libraries of flow matching run time the same way; those of diffusion often run it backwards.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["expected_velocity", "extrapolate", "sample_path", "target_velocity"]

LEAST_VARIANCE = 1e-6  # at t = 1 and σ = 0 the best velocity has no limit


def sample_path(
    z0: Float[Tensor, "batch dim"],
    z1: Float[Tensor, "batch dim"],
    t: Float[Tensor, " batch"],
    sigma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch dim"]:
    r"""Draw $z_t \sim \mathcal{N}(t z_1 + (1 - t) z_0, \sigma^2 I)$ (Eq. 10).

    Args:
        z0: Noise, shape (B, d).
        z1: Embeddings of the labels, shape (B, d).
        t: a time in [0, 1] for each row, shape (B,).
        sigma: $\sigma$, a deviation of at least 0. The paper does not give it; at 0 the path is a
            straight line and nothing is drawn.
        generator: Source of the noise, on the device of ``z0``.
    """
    mean = t[:, None] * z1 + (1 - t[:, None]) * z0
    if sigma == 0:
        return mean
    return mean + sigma * torch.empty_like(z0).normal_(generator=generator)


def target_velocity(
    z0: Float[Tensor, "batch dim"], z1: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    r"""$z_1 - z_0$, the velocity of the path from this noise to this label (Eq. 11)."""
    return z1 - z0


def expected_velocity(
    u_hat: Float[Tensor, "batch dim"],
    z: Float[Tensor, "batch dim"],
    t: Float[Tensor, ""] | Float[Tensor, " batch"],
    sigma: float = 0.0,
) -> Float[Tensor, "batch dim"]:
    r"""$\mathbb{E}[z_1 - z_0 | z_t]$ for a guess $\hat u$ of $\mathbb{E}[z_1 | z_t]$.

    $z_t$ and the noise $z_0$ are jointly Gaussian given $z_1$, so the velocity is
    $\hat u - \frac{1 - t}{(1 - t)^2 + \sigma^2} (z_t - t \hat u)$, and
    $(\hat u - z_t) / (1 - t)$ for $\sigma = 0$.

    Args:
        u_hat: Guesses of the embedding, shape (B, d).
        z: Latents at t, shape (B, d).
        t: One time for all rows, or one each, shape (B,).
        sigma: $\sigma$ of the path; $(1 - t)^2 + \sigma^2$ below 1e-6 counts as 1e-6.

    Example:
        A straight line along it ends at the guess, wherever it starts (``sigma`` = 0):

        >>> u_hat, z, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, -2.0]]), torch.tensor(0.2)
        >>> torch.allclose(extrapolate(z, t, expected_velocity(u_hat, z, t)), u_hat, atol=1e-6)
        True
    """
    t = t[..., None]
    variance = ((1 - t).square() + sigma**2).clamp(min=LEAST_VARIANCE)
    return u_hat - (1 - t) / variance * (z - t * u_hat)


def extrapolate(
    z: Float[Tensor, "batch dim"],
    t: Float[Tensor, ""] | Float[Tensor, " batch"],
    v: Float[Tensor, "batch dim"],
) -> Float[Tensor, "batch dim"]:
    r"""$\tilde z_1 = z_t + (1 - t) v$: where a straight line leads from here (Eq. 12).

    With the best velocity at $\sigma = 0$ it is $\mathbb{E}[u_y | z_t, x]$, as $\hat u$ is.

    Args:
        z: Latents at t, shape (B, d).
        t: One time for all rows, or one each, shape (B,).
        v: Velocities there, shape (B, d).
    """
    return z + (1 - t[..., None]) * v
