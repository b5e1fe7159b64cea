"""Arrays of numpy as weighted sets of distinct examples: channels, duplicates, moments.

An example that comes twice is one example of twice the weight. So repeating an example, giving it a
weight, and changing the order of the rows have exactly the effect that the loss says.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noprop.errors import DataError

__all__ = ["WeightedExamples", "channels_first", "distinct", "moments"]

USUAL = (1, 3, 4)  # channels of grey, colour, and colour with transparency


@dataclass(frozen=True)
class WeightedExamples:
    """Examples with weights.

    Attributes:
        x: Inputs, shape (N, ...).
        y: Labels from 0, int64 of shape (N,).
        weight: Weights above 0, float64 of shape (N,).
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    weight: NDArray[np.float64]

    def take(self, indices: NDArray[np.signedinteger]) -> "WeightedExamples":
        """Return the examples at ``indices``."""
        return WeightedExamples(self.x[indices], self.y[indices], self.weight[indices])


def channels_first(x: NDArray[Any], channels: str) -> NDArray[Any]:
    """Return rows (N, F) as they are, and images as (N, C, H, W).

    Args:
        x: Shape (N, F), (N, H, W), (N, C, H, W) or (N, H, W, C).
        channels: Place of the channels in four axes. With ``auto`` it is the one of axes 1 and 3
            that has 1, 3 or 4 entries.

    Raises:
        DataError: If there are other axes, or ``auto`` cannot tell.
    """
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    if channels not in ("auto", "first", "last"):
        raise DataError(f"channels must be 'auto', 'first' or 'last', got {channels!r}")
    if x.ndim != 4:
        raise DataError(f"X must have 2, 3 or 4 dimensions, got shape {x.shape}")
    first, last = x.shape[1] in USUAL, x.shape[3] in USUAL
    if channels == "auto" and first == last:
        raise DataError(
            f"X of shape {x.shape}: channels may be axis 1 or axis 3; give channels='first' or "
            "channels='last'"
        )
    is_last = channels == "last" or (channels == "auto" and last)
    return np.moveaxis(x, 3, 1) if is_last else x


def distinct(examples: WeightedExamples) -> WeightedExamples:
    """Return each example once, in an order that depends on the set alone, weights added up.

    Examples without weight are left out.
    """
    examples = examples.take(np.flatnonzero(examples.weight > 0))
    if not len(examples.y):
        return examples
    x = np.ascontiguousarray(examples.x.reshape(len(examples.y), -1)) + 0  # -0.0 becomes 0.0
    rows = np.concatenate([x.view(np.uint8), examples.y[:, None].view(np.uint8)], axis=1)
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    weight = np.bincount(which.reshape(-1), weights=examples.weight, minlength=len(first))
    found = examples.take(first)
    return WeightedExamples(found.x, found.y, weight.astype(np.float64))


def moments(examples: WeightedExamples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation of each feature or channel, shape (C,), weighted, in float64.

    A feature that does not vary, by more than rounding, gets the deviation 1.
    """
    x = examples.x.reshape(len(examples.x), examples.x.shape[1], -1)
    share = examples.weight / examples.weight.sum()
    mean = share @ x.mean(axis=2, dtype=np.float64)
    squares = np.square(x - mean[:, None]).mean(axis=2, dtype=np.float64)
    deviation = np.sqrt(share @ squares)
    return mean, np.where(deviation > 1e-9 * np.abs(mean), deviation, 1.0)
