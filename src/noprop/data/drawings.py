"""A drawn digit as the digits of MNIST and scikit-learn were made: cropped, scaled and centred.

MNIST's digits were scaled into 20x20 pixels with their aspect ratio kept, and placed in 28x28 with
their centre of mass in the middle. Those of scikit-learn fill the height of 32x32 black or white
pixels and some 22 columns in their middle, and each 4x4 of these became a number from 0 to 16.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from noprop.errors import DataError

__all__ = ["as_digit", "is_digits"]

FAINT = 0.1  # of the strongest ink: less belongs to the paper
LEAST_CONTRAST = 16  # of 255: less is an empty page
BOX = 20 / 28  # of the sides: the digit in an image of MNIST
# Of scikit-learn's digits. WIDE, STRETCH and BLACK give MNIST's digits the mean ink and the widths
# of these, and a model of these the most right answers of 9 choices (400 digits, training part).
CELL = 4  # side of the pixels behind one number
WIDE, STRETCH = 22, 1.6  # columns of a digit at most, and how much wider than drawn
BLACK = 0.2  # ink of a black pixel, at least


def is_digits(shape: tuple[int, ...]) -> bool:
    """Whether :func:`as_digit` makes examples of a shape: grey and square."""
    return len(shape) == 3 and shape[0] == 1 and shape[1] == shape[2]


def as_digit(image: UInt8[Tensor, "1 h w"], size: int) -> UInt8[Tensor, "1 size size"]:
    """Return a drawing or photograph of one digit as light ink on black, scaled and centred.

    Ink is what differs from the paper, whose grey is the median of the image's frame. So it may be
    dark on light or light on dark.

    Args:
        image: The grey image, in 0..255.
        size: Side of the result: 8 as in scikit-learn's digits, else in the proportions of MNIST.

    Raises:
        DataError: If nothing is drawn.
    """
    ink = _cropped(_ink(image[0].float()))
    digit = _as_scikit_learn(ink) if size == 8 else _as_mnist(ink, size)
    return digit.round().clamp(0, 255).to(torch.uint8)[None]


def _ink(grey: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Return the difference from the paper, at most 1; less than :data:`FAINT` of it is 0."""
    frame = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = (grey - frame.median()).abs()
    if ink.max() < LEAST_CONTRAST:
        raise DataError("the image is empty: nothing is drawn")
    ink /= ink.max()
    return torch.where(ink < FAINT, 0.0, ink)


def _cropped(ink: Float[Tensor, "h w"]) -> Float[Tensor, "rows cols"]:
    rows, columns = (ink.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scaled(ink: Float[Tensor, "h w"], *sides: float) -> Float[Tensor, "rows cols"]:
    size = [max(1, round(side)) for side in sides]
    return F.interpolate(ink[None, None], size, mode="bilinear", antialias=True)[0, 0]


def _as_mnist(ink: Float[Tensor, "h w"], size: int) -> Float[Tensor, "size size"]:
    scale = BOX * size / max(ink.shape)
    digit = _scaled(ink, *(scale * n for n in ink.shape))
    middles = (
        (digit.sum(dim=1 - axis) * torch.arange(n)).sum() / digit.sum()
        for axis, n in enumerate(digit.shape)
    )
    corner = [round(size / 2 - float(middle)) for middle in middles]
    return _placed(255 * digit, corner, size)


def _as_scikit_learn(ink: Float[Tensor, "h w"]) -> Float[Tensor, "8 8"]:
    height, width = ink.shape
    tall = 8 * CELL
    digit = _scaled(ink, float(tall), min(float(WIDE), STRETCH * tall * width / height))
    page = _placed((digit >= BLACK).float(), [0, (tall - digit.shape[1]) // 2], tall)
    return 15 * F.avg_pool2d(page[None], CELL)[0] * CELL**2  # 0..16, kept as multiples of 15


def _placed(digit: Float[Tensor, "h w"], corner: Sequence[int], size: int) -> Float[Tensor, "s s"]:
    """Return an empty page with the digit at a corner, or as near to it as it fits."""
    (h, w), page = digit.shape, torch.zeros(size, size)
    top, left = (min(max(0, at), size - n) for at, n in zip(corner, (h, w), strict=True))
    page[top : top + h, left : left + w] = digit
    return page
