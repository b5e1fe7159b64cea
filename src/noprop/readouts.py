r"""Readouts: from the last latent $z_T$ to log-probabilities over classes (Eqs. 14-16, Fig. 6).

Differs from the paper: with fixed embeddings both start as the nearest-embedding classifier and
are trained from there, without touching an image. From torch's usual start the readout is the last
part to learn on small data, and before that a perfect chain classifies at chance. With learned
embeddings they start at random, as in the paper: a readout that classifies them from the start has
no gradient that keeps them apart.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noprop.embeddings import separation

__all__ = [
    "RadialReadout",
    "Readout",
    "ReadoutStart",
    "SoftmaxReadout",
    "nearest_embedding_layer",
    "nearest_embedding_logits",
]

ReadoutStart = Literal["nearest", "random"]

# Nats by which an embedding itself is classified ahead of its nearest neighbour at the start.
START_MARGIN = 10.0
LEAST_DISTANCE = 1e-6  # embeddings that collapsed into one point still give finite numbers


class SoftmaxReadout(nn.Module):
    """A linear layer f on z (Eq. 14).

    Args:
        weight: W_Embed at the start of training, shape (m, d).
        start: ``nearest`` for logits s (z·u_k - ‖u_k‖²/2), or ``random`` for torch's default.
    """

    def __init__(self, weight: Float[Tensor, "classes dim"], start: ReadoutStart = "nearest"):
        super().__init__()
        self.linear = nearest_embedding_layer(weight, start)

    def forward(
        self, z: Float[Tensor, "batch dim"], weight: Float[Tensor, "classes dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Return logits; ``weight``, the current W_Embed, is not read."""
        return self.linear(z)


class RadialReadout(nn.Module):
    r"""$p(y|z) \propto \exp(-\|\tilde y - u_y\|^2 / 2\sigma^2)$ (Eqs. 15, 16).

    $\tilde y$ = softmax(f(z)) W_Embed is a guess of the embedding.

    Args:
        weight: W_Embed at the start of training, shape (m, d).
        start: Start of the layer f, as for :class:`SoftmaxReadout`.
        sigma: σ, above 0, in the units of the embeddings. The paper does not give it; by default
            it is the least distance between two embeddings over √32, so that $\tilde y = u_y$ leads
            its nearest neighbour by 16 nats.
    """

    sigma: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "classes dim"],
        start: ReadoutStart = "nearest",
        sigma: float | None = None,
    ):
        super().__init__()
        self.linear = nearest_embedding_layer(weight, start)
        self.register_buffer(
            "sigma", torch.tensor(separation(weight)[1] / 32**0.5 if sigma is None else sigma)
        )

    def forward(
        self, z: Float[Tensor, "batch dim"], weight: Float[Tensor, "classes dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Return log-probabilities up to a constant, for the current W_Embed."""
        guess = self.linear(z).softmax(dim=1) @ weight
        # Not from products, which cancel; and (B, m, d) differences would not fit for prototypes.
        squares = torch.cdist(guess, weight, compute_mode="donot_use_mm_for_euclid_dist").square()
        return squares / (-2 * self.sigma**2)


Readout = SoftmaxReadout | RadialReadout


def nearest_embedding_layer(weight: Float[Tensor, "classes dim"], start: ReadoutStart) -> nn.Linear:
    """Return a linear layer whose argmax is the nearest embedding, scaled by the closest pair."""
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    if start == "nearest":
        with torch.no_grad():
            for own, wanted in zip((linear.weight, linear.bias), _nearest(weight), strict=True):
                own.copy_(wanted)
    return linear


def nearest_embedding_logits(
    z: Float[Tensor, "batch dim"], weight: Float[Tensor, "classes dim"]
) -> Float[Tensor, "batch classes"]:
    """Return logits whose argmax is the nearest embedding, for a method without a readout.

    The posterior of the class under Gaussians around the embeddings, of one width: an embedding
    itself leads its nearest neighbour by 10 nats.
    """
    slope, offset = _nearest(weight)
    return z @ slope.T + offset


def _nearest(
    weight: Float[Tensor, "classes dim"],
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Return s u_k and -s ‖u_k‖² / 2: u_y is ahead of neighbour k by s ‖u_y - u_k‖² / 2."""
    scale = 2 * START_MARGIN / max(separation(weight)[1], LEAST_DISTANCE) ** 2
    return scale * weight, -scale / 2 * weight.square().sum(dim=1)
