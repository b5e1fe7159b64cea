"""Layers whose randomness comes from a generator, and the residual path of Fig. 5."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "DropoutKind",
    "ReLUDropout",
    "ResidualPath",
    "Sequence",
    "channels_last",
    "keep_mask",
    "stochastic_call",
    "weighted_statistics",
]

DropoutKind = Literal["feature", "channel"]


def stochastic_call(
    module: nn.Module, x: Float[Tensor, "batch ..."], generator: torch.Generator | None
) -> Float[Tensor, "..."]:
    """Call a module with the generator if it takes one."""
    return module(x, generator) if getattr(module, "takes_generator", False) else module(x)


def channels_last(x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    """Return images in the memory format ``torch.channels_last``, copied only if necessary.

    torch's own conversion leaves images of one channel as they are, because both formats order
    them alike. Convolutions would then treat them and all later activations as contiguous, which
    is slower.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    return x.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))


@contextmanager
def weighted_statistics(
    module: nn.Module, weight: Float[Tensor, " batch"] | None
) -> Iterator[None]:
    """Let the batch normalisation of a module count each example by its weight in this block.

    An example of weight 2 then changes mean and variance as two examples do. Without this, examples
    of weight 0 would still centre the features: a class of great weight could not be predicted for
    inputs that lie on their side.
    """
    if weight is None or bool((weight == weight[0]).all()):
        yield
        return
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_weighted_norm, norm, weight)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _weighted_norm(norm: _BatchNorm, weight: Float[Tensor, " batch"], input: Tensor) -> Tensor:
    """Return what ``norm`` returns in training, with weighted statistics; they are kept as there.

    A layer that has other rows than the examples keeps its own statistics.
    """
    momentum, mean, var = norm.momentum, norm.running_mean, norm.running_var
    plain = not norm.training or len(input) != len(weight)
    if plain or momentum is None or mean is None or var is None:
        return _BatchNorm.forward(norm, input)
    axes, count = (0, *range(2, input.ndim)), input.numel() // input.shape[1]
    share = (weight / weight.sum()).view(-1, *(1 for _ in input.shape[1:])) * (len(input) / count)
    values = input.float()
    own_mean = (share * values).sum(axes, keepdim=True)
    own_var = (share * (values - own_mean).square()).sum(axes, keepdim=True)
    with torch.no_grad():
        mean.lerp_(own_mean.flatten(), momentum)
        var.lerp_(own_var.flatten() * (count / max(1, count - 1)), momentum)
        norm.get_buffer("num_batches_tracked").add_(1)
    values = (values - own_mean) * (own_var + norm.eps).rsqrt()
    if norm.affine:
        shape = own_mean.shape
        values = values * norm.weight.view(shape) + norm.bias.view(shape)
    return values.to(input.dtype)


class Sequence(nn.Sequential):
    """Modules called one after the other; those that take a generator receive it."""

    takes_generator = True

    def forward(
        self, input: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Return the last module's output."""
        for module in self:
            input = stochastic_call(module, input, generator)
        return input


def keep_mask(
    x: Float[Tensor, "..."], keep_of_256: int, generator: torch.Generator | None
) -> Bool[Tensor, "..."]:
    """Draw a mask in the shape and memory order of ``x``, True with probability keep_of_256 / 256.

    On the CPU each draw gives eight bytes: a draw per element costs more than a small convolution.
    """
    return _below(x, keep_of_256, generator).bool()


def _below(x: Tensor, keep_of_256: int, generator: torch.Generator | None) -> Tensor:
    """Return 1 where a random byte is below the threshold, else 0, as uint8."""
    n = x.numel()
    if x.device.type == "cpu":
        words = torch.empty((n + 7) // 8, dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator)
        flat = words.view(torch.uint8)[:n]
    else:
        flat = torch.empty(n, dtype=torch.uint8, device=x.device)
        flat.random_(0, 256, generator=generator)
    # In place, and in the type of the bytes: a comparison that makes booleans is ten times slower.
    below = flat.lt_(keep_of_256)
    dense = x if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else None
    return below.view(x.shape) if dense is None else below.as_strided(x.shape, dense.stride())


class ReLUDropout(nn.Module):
    """max(x, 0), then inverted dropout while training; with ``pool``, 2×2 max-pooling before both.

    The probability is rounded to a multiple of 1/256 (0.2 becomes 51/256 = 0.1992), and the scale
    corrects for the rounded value, so the expectation is exact. Pooling rounds down; it commutes
    with the ReLU.

    Args:
        dropout: Probability that an element is set to 0, in [0, 1).
        pool: Whether to pool; the input must then be images (B, C, H, W).
        kind: ``feature`` drops single elements, ``channel`` whole channels of an image. Flat inputs
            have single elements only.
    """

    takes_generator = True

    def __init__(self, dropout: float, *, pool: bool = False, kind: DropoutKind = "feature"):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.keep_of_256 = max(1, round(256 * (1 - dropout)))
        self.pool = pool
        self.kind: DropoutKind = kind

    def forward(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the activations."""
        keep = self.keep_of_256 if self.training else 256
        whole = self.kind == "channel" and x.ndim == 4
        if x.device.type == "cpu" and not (whole and keep < 256):
            function = _PoolReLUDropout if self.pool else _ReLUDropout
            activations = function.apply(x, keep, generator)
            assert isinstance(activations, Tensor)
            return activations
        x = F.relu(F.max_pool2d(x, 2) if self.pool else x)
        if keep == 256:
            return x
        mask = keep_mask(x[:, :, :1, :1] if whole else x, keep, generator)
        return x * mask * (256 / keep)


# These functions equal the plain operations to the last bit where all values are finite, and take
# half their time on a CPU. There boolean masks, products of mixed types and the scatter of a pool's
# gradient are not vectorised; bitwise operations on integers of the floats' width are. They have no
# second derivatives, and torch.func does not support them.

_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _drop_(x: Tensor, keep_of_256: int, generator: torch.Generator | None) -> Tensor:
    """Apply dropout in place."""
    if keep_of_256 == 256:
        return x
    bits = _BITS[x.dtype]
    mask = _below(x, keep_of_256, generator).to(bits).neg_()  # all bits, or none
    x.view(bits).bitwise_and_(mask)
    return x.mul_(256 / keep_of_256)


def _drop_gradient(gradient: Tensor, out: Tensor, keep_of_256: int) -> Tensor:
    """Return the gradient before ReLU and dropout: it passes where the output is not 0."""
    if (
        gradient.stride() != out.stride()
    ):  # after a Flatten: the next line would be ten times slower
        gradient = torch.empty_like(out).copy_(gradient)
    # The gradient of an ELU whose negative side is 0 masks and scales in one pass.
    return torch.ops.aten.elu_backward(gradient, 0.0, 256 / keep_of_256, 1.0, True, out)


class _ReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: int, generator: torch.Generator | None) -> Tensor:
        out = _drop_(F.relu(x), keep, generator)
        ctx.save_for_backward(out)
        ctx.keep = keep
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _drop_gradient(gradients[0], ctx.saved_tensors[0], ctx.keep), None, None


class _PoolReLUDropout(torch.autograd.Function):
    """Pool, ReLU and dropout; the first of equal values gets the gradient, as in torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: int, generator: torch.Generator | None) -> Tensor:
        ctx.shape, ctx.stride, ctx.keep = x.shape, x.stride(), keep
        x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
        rows = torch.maximum(x[..., ::2], x[..., 1::2])
        out = _drop_(torch.maximum(rows[:, :, ::2], rows[:, :, 1::2]).relu_(), keep, generator)
        ctx.save_for_backward(x, rows, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, rows, out = ctx.saved_tensors
        bits = _BITS[x.dtype]
        # Bits compare like their floats where one is positive; only there is the gradient not 0.
        x, rows = x.view(bits), rows.view(bits)
        gradient = _drop_gradient(gradients[0], out, ctx.keep).view(bits)
        to_rows = torch.empty_like(rows)
        _share(gradient, rows[:, :, ::2], rows[:, :, 1::2], to_rows[:, :, ::2], to_rows[:, :, 1::2])
        whole = x.shape == ctx.shape
        # Where a row or column is left over, the same layout: batch norm's gradient is ten times
        # slower if it differs from that of its input.
        to_x = torch.empty_like(x) if whole else x.new_empty_strided(ctx.shape, ctx.stride).zero_()
        inside = to_x[:, :, : x.shape[2], : x.shape[3]]
        _share(to_rows, x[..., ::2], x[..., 1::2], inside[..., ::2], inside[..., 1::2])
        return to_x.view(gradients[0].dtype), None, None


def _share(gradient: Tensor, a: Tensor, b: Tensor, to_a: Tensor, to_b: Tensor) -> None:
    """Pass the gradient of max(a, b) to the greater, or to ``a`` if they are equal, as bits."""
    mask = torch.ge(a, b, out=torch.empty_like(gradient)).neg_()
    torch.bitwise_and(gradient, mask, out=to_a)
    torch.bitwise_xor(gradient, to_a, out=to_b)


class ResidualPath(nn.Module):
    """The latent path of a DT block: h = ReLU(BN(FC z)); h + BN(FC(ReLU(BN(FC h))))."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
        )
        self.residual = nn.Sequential(
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
        )

    def forward(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch width"]:
        """Return features of shape (B, width)."""
        h = self.first(z)
        return h + self.residual(h)
