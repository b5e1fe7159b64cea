r"""The networks of Fig. 5: a path for the image, one for the latent, one for time, and a head.

A block's image path depends on $x$ alone. So a block is used in two halves: ``context(x)`` once per
image, then ``forward(z, context)`` once per latent. The head's first layer acts on the
concatenation of both. Multiplying its two halves separately and adding gives the same numbers, and
lets ``context`` compute the image's part of that product too.

Where the evidence of the latent is known (:mod:`noprop.evidence`), a network need not read it. Then
``context(x)`` is all of the network, and ``forward`` returns it.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from noprop.encoders import WIDTH, EncoderFactory, EncoderKind, Features
from noprop.layers import DropoutKind, ResidualPath, stochastic_call

__all__ = ["ContinuousBlock", "DiscreteBlock", "Reads", "sinusoidal_embedding"]

Reads = Literal["x and z", "x"]

TIME_FEATURES = 64


class Head(nn.Module):
    """Concat → FC 256 → ReLU → FC 128 → ReLU → FC m, each hidden layer with batch norm in DT."""

    def __init__(self, inputs: int, num_classes: int, *, batch_norm: bool):
        super().__init__()
        self.join = nn.Linear(inputs, WIDTH)
        self.norm1 = nn.BatchNorm1d(WIDTH) if batch_norm else nn.Identity()
        self.hidden = nn.Linear(WIDTH, 128)
        self.norm2 = nn.BatchNorm1d(128) if batch_norm else nn.Identity()
        self.out = nn.Linear(128, num_classes)

    def part(
        self,
        features: Float[Tensor, "batch width"],
        index: int,
        offset: Float[Tensor, " width"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """Return the contribution of the ``index``-th 256 inputs to the first layer's output.

        The first contribution includes the layer's bias, the others include ``offset``.
        """
        columns = self.join.weight[:, index * WIDTH : (index + 1) * WIDTH]
        return F.linear(features, columns, self.join.bias if index == 0 else offset)

    def forward(self, joined: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Return logits from the sum of the parts, which is overwritten."""
        hidden = F.relu(self.norm1(joined), inplace=True)
        return self.out(F.relu(self.norm2(self.hidden(hidden)), inplace=True))


def _latent_features(
    shape: tuple[int, ...], dropout: float, kind: DropoutKind, *, batch_norm: bool
) -> nn.Module:
    """Return a path for the latent: an image path for (C, H, W), else layers of 256."""
    if len(shape) == 3:
        return Features(shape, dropout=dropout, dropout_kind=kind, batch_norm=batch_norm)
    if batch_norm:
        return ResidualPath(shape[0], WIDTH)
    return nn.Sequential(nn.Linear(shape[0], WIDTH), nn.ReLU(inplace=True))


class DiscreteBlock(nn.Module):
    """One block of NoProp-DT (Fig. 5, left): û_t's logits from z_{t-1} and x.

    Args:
        shape: Shape of one input, (C, H, W) or (F,).
        latent_shape: (d,), or (C, H, W) for prototype embeddings.
        num_classes: m.
        encoder: Kind of image path, see :class:`Features`.
        dropout: Probability of dropping a feature, in [0, 1).
        dropout_kind: What is dropped at once, see :class:`Features`.
        factory: A user's own encoder, see :class:`Features`.
        reads: Inputs of the network; ``x`` leaves out the path for the latent.

    Attributes:
        latent: The path for the latent, or None.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        num_classes: int,
        *,
        encoder: EncoderKind = "auto",
        dropout: float = 0.2,
        dropout_kind: DropoutKind = "feature",
        factory: EncoderFactory | None = None,
        reads: Reads = "x and z",
    ):
        super().__init__()
        self.latent_shape = latent_shape
        self.image = Features(
            shape, kind=encoder, dropout=dropout, dropout_kind=dropout_kind, factory=factory
        )
        self.latent = None
        if reads == "x and z":
            self.latent = _latent_features(latent_shape, dropout, dropout_kind, batch_norm=True)
        self.head = Head(2 * WIDTH if self.latent else WIDTH, num_classes, batch_norm=True)

    def context(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch width"]:
        """Return all that the logits take from x, shape (B, 256) or (B, m): for every latent."""
        part = self.head.part(self.image(x, generator), 0)
        return part if self.latent else self.head(part)

    def forward(
        self,
        z: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch width"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of û, shape (B, m)."""
        if self.latent is None:
            return context
        latent = z.unflatten(1, self.latent_shape)
        return self.head(
            context + self.head.part(stochastic_call(self.latent, latent, generator), 1)
        )


class ContinuousBlock(nn.Module):
    """The network of NoProp-CT and -FM (Fig. 5, right): logits from z_t, x and t.

    Arguments as for :class:`DiscreteBlock`; no batch norm, and a time path, which is left out with
    the one for the latent. ``latent_dropout`` is the dropout of a latent that is an image, by
    default ``dropout``. ``time_scale`` is the scale of :func:`sinusoidal_embedding`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        num_classes: int,
        *,
        encoder: EncoderKind = "auto",
        dropout: float = 0.2,
        dropout_kind: DropoutKind = "feature",
        latent_dropout: float | None = None,
        time_scale: float = 1000.0,
        factory: EncoderFactory | None = None,
        reads: Reads = "x and z",
    ):
        super().__init__()
        self.latent_shape = latent_shape
        self.image = Features(
            shape,
            kind=encoder,
            dropout=dropout,
            dropout_kind=dropout_kind,
            batch_norm=False,
            factory=factory,
        )
        self.time_scale = time_scale
        self.latent = self.time = None
        if reads == "x and z":
            drop = dropout if latent_dropout is None else latent_dropout
            self.latent = _latent_features(latent_shape, drop, dropout_kind, batch_norm=False)
            self.time = nn.Sequential(nn.Linear(TIME_FEATURES, WIDTH), nn.ReLU())
        self.head = Head(3 * WIDTH if self.latent else WIDTH, num_classes, batch_norm=False)

    def context(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch width"]:
        """Return all that the logits take from x, (B, 256) or (B, m), for every latent and time."""
        part = self.head.part(self.image(x, generator), 0)
        return part if self.latent else self.head(part)

    def time_context(self, t: Float[Tensor, " times"]) -> Float[Tensor, "times features"]:
        """Return all that the logits take from t, (N, 256) or (N, 0), for every latent."""
        if self.time is None:
            return t.new_zeros(len(t), 0)
        return self.head.part(self.time(sinusoidal_embedding(t, self.time_scale)), 2)

    def forward(
        self,
        z: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch width"],
        time_context: Float[Tensor, "times features"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return logits, shape (B, m); ``time_context`` has one row for each latent or for all."""
        if self.latent is None:
            return context
        latent = z.unflatten(1, self.latent_shape)
        features = stochastic_call(self.latent, latent, generator)
        if len(time_context) == 1:  # a bias of the product costs no pass over (B, 256)
            return self.head(self.head.part(features, 1, time_context[0]) + context)
        return self.head(context + time_context + self.head.part(features, 1))


def sinusoidal_embedding(
    t: Float[Tensor, " times"], scale: float = 1000.0
) -> Float[Tensor, "times features"]:
    """Return sines and cosines of ``scale`` t at 32 frequencies from 1 to 1/10 000, t in [0, 1].

    Differs from the paper, which gives the width (64) but not the scale: times in [0, 1] are
    stretched to the positions 0..1000 for which these frequencies are customary.
    """
    half = TIME_FEATURES // 2
    exponent = torch.arange(half, device=t.device, dtype=t.dtype) / (half - 1)
    angle = scale * t[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
