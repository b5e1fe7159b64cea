r"""Exact evidence: what a latent says about the label, known without training.

Given $y$, a latent is the embedding $u_y$ and noise, drawn without looking at $x$. So by Bayes'
rule $p(y | z, x) \propto p(y | x)\, p(z | y)$, and the best logits are $\log p(y | x) + e_y(z)$
with the *evidence* $e_y(z) = \log p(z | y)$, up to a term that is the same for every class. For
$z | y \sim \mathcal{N}(s\, u_y, v I)$ it is

.. math:: e_y(z) = \frac{s \langle z, u_y \rangle - \tfrac12 s^2 \|u_y\|^2}{v},

where a level of the diffusion (Eq. 6) has $s = \sqrt{\bar\alpha}$ and $v = 1 - \bar\alpha$, and the
path of flow matching (Eq. 10) has $s = t$ and $v = (1 - t)^2 + \sigma^2$.

Differs from the paper, whose blocks learn this term. docs/theory.md has the proof and what follows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["evidence", "flow_evidence", "level_evidence"]

# The least v of a path that ends at u_y, over the greatest squared length of an embedding: there
# the evidence would be infinite.
LEAST_VARIANCE = 1e-6


def evidence(
    z: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    signal: Float[Tensor, "*batch"],
    variance: Float[Tensor, "*batch"],
) -> Float[Tensor, "batch classes"]:
    r"""Return $e_y(z)$ of every class in nats, up to a term that is the same for all classes.

    Args:
        z: Latents, shape (B, d).
        weight: W_Embed, shape (m, d).
        signal: $s$, one for the batch or one for each latent.
        variance: $v$, above 0 and of the shape of ``signal``.

    Returns:
        Shape (B, m), in the precision of ``z`` and ``variance`` together, whatever autocast chooses
        for products.
    """
    signal, variance = signal[..., None], variance[..., None]
    with torch.autocast(z.device.type, enabled=False):
        products = z @ weight.to(z.dtype).T
    return (signal * products - signal.square() * (0.5 * weight.square().sum(dim=1))) / variance


def level_evidence(
    z: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    gamma: Float[Tensor, "*batch"],
) -> Float[Tensor, "batch classes"]:
    r"""Return the evidence of $z \sim \mathcal{N}(\sqrt{\bar\alpha}\, u_y, (1 - \bar\alpha) I)$.

    Args:
        z: Latents, shape (B, d).
        weight: W_Embed, shape (m, d).
        gamma: $-\log\mathrm{SNR}$ of the level: a scalar shared by the batch, or one each, (B,).

    Example:
        The more noise, the less a latent tells of its label:

        >>> z, W = torch.tensor([0.9, 0.1, 0.0]).expand(3, 3), torch.eye(3)
        >>> gamma = torch.tensor([10.0, 0.0, -3.0])
        >>> level_evidence(z, W, gamma).softmax(dim=1).round(decimals=2)
        tensor([[0.3300, 0.3300, 0.3300],
                [0.6200, 0.2000, 0.1700],
                [1.0000, 0.0000, 0.0000]])
    """
    return evidence(z, weight, torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma))


def flow_evidence(
    z: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    t: Float[Tensor, "*batch"],
    sigma: float = 0.0,
) -> Float[Tensor, "batch classes"]:
    r"""Return the evidence of $z \sim \mathcal{N}(t u_y, ((1 - t)^2 + \sigma^2) I)$.

    Args:
        z: Latents at t, shape (B, d).
        weight: W_Embed, shape (m, d).
        t: One time in [0, 1] for the batch, or one each, (B,).
        sigma: $\sigma$ of the path (Eq. 10). For $\sigma = 0$ the variance near t = 1 counts as at
            least 1e-6 of the greatest squared length of an embedding.
    """
    least = LEAST_VARIANCE * weight.detach().square().sum(dim=1).amax(dim=0)
    return evidence(z, weight, t, torch.maximum((1 - t).square() + sigma**2, least))
