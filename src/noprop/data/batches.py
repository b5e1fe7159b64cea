"""From uint8 examples on the device to normalised training batches: index operations only.

Nothing here touches a global seed: shuffling and augmentation draw from the generator they are
given, so a step can be repeated on its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor

__all__ = ["Normalization", "augment", "balanced_weights", "batch_indices"]

NUMBERS_AT_A_TIME = 2**19  # numbers converted to float64 at a time: 4 MiB, which caches hold


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation along axis 1: of each channel, or of each feature.

    Those of uint8 images are in the scale 0..1. Both are tuples of Python floats, so that
    ``dataclasses.asdict`` gives what JSON can hold without loss.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, x: Shaped[Tensor, "n channels *rest"]) -> "Normalization":
        """Return the statistics of ``x``, the **training** part, as population moments in float64.

        A channel that does not vary (by more than float32 can tell from its mean) gets a deviation
        of one, so that it becomes zero and never infinite.

        Args:
            x: uint8 images (N, C, H, W) or float32 features (N, C, ...), on any device.
        """
        count = x.numel() / x.shape[1]
        total, squares = torch.zeros(2, x.shape[1], dtype=torch.float64)
        for chunk in _chunks(x):
            total += chunk.sum(2).sum(0)
        mean = total / count
        # Twice through: E[x²] - E[x]² would lose the digits of features far from zero.
        for chunk in _chunks(x):
            squares += (chunk - mean[:, None]).square_().sum(2).sum(0)
        std = (squares / count).sqrt()
        std = torch.where(std > 1e-6 * mean.abs(), std, _range(x))
        return cls(tuple((mean / _range(x)).tolist()), tuple((std / _range(x)).tolist()))

    def apply(self, x: Shaped[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
        """Return ``(x - mean) / std`` as float32, in two operations; uint8 counts as 0..1.

        Args:
            x: Shape (B, C, ...), with as many channels or features C as these statistics have.
        """
        broadcast = (-1,) + (1,) * (x.ndim - 2)
        mean = torch.tensor([m * _range(x) for m in self.mean], device=x.device).view(broadcast)
        scale = torch.tensor([1 / (s * _range(x)) for s in self.std], device=x.device)
        # The mean first: x·scale + shift would cancel where features lie far from zero.
        return (x - mean).mul_(scale.view(broadcast))


def balanced_weights(y: Int64[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Return weights of examples with which every class of ``y`` weighs as much in a loss.

    An example of a class of $n_c$ among $n$ of $m$ classes weighs $n / (m n_c)$, as in
    scikit-learn. The mean over the examples is 1.
    """
    counts = y.bincount()
    present = int((counts > 0).sum())
    return (len(y) / (present * counts.double())).float()[y]


def batch_indices(
    n: int, batch_size: int, generator: torch.Generator
) -> Int64[Tensor, "batches batch"]:
    """Return one shuffle of 0..n-1 in batches of one size, on the generator's device.

    The remainder of the shuffle is left out of this epoch: every batch then has the same shape,
    which compiled code wants, and batch norm never meets a batch of one.

    Args:
        n: Number of examples, at least 1.
        batch_size: B, at least 1; fewer than B examples make one batch.
        generator: Source of the shuffle.

    Returns:
        Shape (max(1, n // B), min(B, n)); no index comes twice.

    Raises:
        ValueError: If ``n`` or ``batch_size`` is less than 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    size = min(batch_size, n)
    shuffled = torch.randperm(n, generator=generator, device=generator.device)
    return shuffled[: n // size * size].view(-1, size)


def augment(
    x: UInt8[Tensor, "batch channels height width"],
    generator: torch.Generator,
    *,
    padding: int,
    flip: bool,
    cutout: int = 0,
) -> UInt8[Tensor, "batch channels height width"]:
    """Crop each zero-padded image at random, mirror about half of them, and cut squares out.

    Each sample has its own offset and its own coin; all of them move in one indexing operation.

    Args:
        x: Images of a training batch, shape (B, C, H, W).
        generator: Source of the draws, on the device of ``x``.
        padding: Width of the black border in pixels, at least 0; offsets are uniform in
            0..2·padding, each way.
        flip: Whether to mirror left to right, with probability one half.
        cutout: Side in pixels of a black square in each image (DeVries and Taylor, 2017). Its
            centre is uniform over the pixels, so a part of it may lie outside.

    Raises:
        ValueError: If ``padding`` is negative.
    """
    if padding < 0:
        raise ValueError(f"padding must be at least 0, got {padding}")
    batch, channels, height, width = x.shape
    device = x.device
    rows = torch.arange(height, device=device).expand(batch, -1)
    columns = torch.arange(width, device=device).expand(batch, -1)
    if flip:
        mirrored = torch.randint(2, (batch, 1), generator=generator, device=device).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator, device=device)
        rows, columns = rows + offsets[0], columns + offsets[1]
        x = torch.nn.functional.pad(x, (padding,) * 4)
    sample = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    x = x[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    if cutout:
        places = torch.arange(max(height, width), device=device)
        inside = []
        for side in (height, width):
            first = torch.randint(side, (batch, 1), generator=generator, device=device)
            first -= cutout // 2
            inside.append((places[:side] >= first) & (places[:side] < first + cutout))
        x.masked_fill_(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)
    return x


def _chunks(x: Shaped[Tensor, "n channels *rest"]) -> Iterator[Float64[Tensor, "k channels rest"]]:
    """Yield ``x``, a few examples at a time, in float64 on the CPU: some devices have none."""
    for chunk in x.split(max(1, NUMBERS_AT_A_TIME // x[0].numel())):
        yield chunk.cpu().double().view(len(chunk), x.shape[1], -1)


def _range(x: Tensor) -> float:
    """Return the value that counts as one: 255 for pixels, 1 for features."""
    return 255.0 if x.dtype == torch.uint8 else 1.0
