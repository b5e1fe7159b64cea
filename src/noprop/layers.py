"""Layers whose randomness comes from a generator, and the residual path of Fig. 5."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = [
    "MaxPool2",
    "ReLUDropout",
    "ResidualPath",
    "Sequence",
    "keep_mask",
    "stochastic_call",
]


def stochastic_call(
    module: nn.Module, x: Float[Tensor, "batch ..."], generator: torch.Generator | None
) -> Float[Tensor, "..."]:
    """Call a module with the generator if it takes one."""
    return module(x, generator) if getattr(module, "takes_generator", False) else module(x)


class Sequence(nn.Sequential):
    """Modules in a row; the generator reaches those that draw from it."""

    takes_generator = True

    def forward(
        self, input: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """The last module's output."""
        for module in self:
            input = stochastic_call(module, input, generator)
        return input


def keep_mask(
    x: Float[Tensor, "..."], keep_of_256: int, generator: torch.Generator | None
) -> Bool[Tensor, "..."]:
    """True with probability ``keep_of_256`` / 256, in the shape and memory order of ``x``.

    On the CPU eight bytes come from each draw: a draw per element costs more than a small
    convolution.
    """
    n = x.numel()
    if x.device.type == "cpu":
        words = torch.empty((n + 7) // 8, dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator)
        flat = words.view(torch.uint8)[:n]
    else:
        flat = torch.empty(n, dtype=torch.uint8, device=x.device).random_(
            0, 256, generator=generator
        )
    keep = flat < keep_of_256
    dense = x if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else None
    return keep.view(x.shape) if dense is None else keep.as_strided(x.shape, dense.stride())


class ReLUDropout(nn.Module):
    """max(x, 0), then inverted dropout while training.

    The probability is rounded to a multiple of 1/256 (0.2 becomes 51/256 = 0.1992), and the scale
    corrects for the rounded value, so the expectation is exact.

    Args:
        dropout: probability that an element is set to 0, in [0, 1).
    """

    takes_generator = True

    def __init__(self, dropout: float):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.keep_of_256 = max(1, round(256 * (1 - dropout)))

    def forward(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch ..."]:
        """The activations."""
        x = F.relu(x)
        if not self.training or self.keep_of_256 == 256:
            return x
        return x * keep_mask(x, self.keep_of_256, generator) * (256 / self.keep_of_256)


class MaxPool2(nn.Module):
    """2×2 max-pooling that rounds down."""

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h2 w2"]:
        """The pooled images."""
        return F.max_pool2d(x, 2)


class ResidualPath(nn.Module):
    """The latent path of a DT block: h = ReLU(BN(FC z)); h + BN(FC(ReLU(BN(FC h))))."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
        )

    def forward(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch width"]:
        """Features, shape (B, width)."""
        h = self.first(z)
        return h + self.residual(h)
