"""Central differences of a loss in float64: what any gradient must be."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["assert_gradient_is_that_of_differences"]


def assert_gradient_is_that_of_differences(
    loss: Callable[[], Tensor], parameter: Tensor, *, least: float = 1e-4, step: float = 1e-5
) -> None:
    """Compare ``autograd`` of a loss with (f(p + h) - f(p - h)) / 2h, entry by entry.

    The differences err by about h² = 1e-10 of the loss's third derivative and by 1e-16 / h of the
    loss; 1e-6 of the largest entry is far above both and far below what a lost term changes.

    Args:
        loss: A function of the parameter alone: it draws the same noise at each call, in float64.
        parameter: A leaf in float64, which is left as it was.
        least: The largest entry must exceed it, for a gradient of nearly nothing shows nothing.
        step: h.
    """
    assert parameter.dtype == torch.float64
    (found,) = torch.autograd.grad(loss(), [parameter])
    expected, flat = torch.empty_like(found), parameter.data.view(-1)
    for i in range(flat.numel()):
        start, sides = flat[i].item(), []
        for value in (start + step, start - step):
            flat[i] = value
            sides.append(loss().item())
        flat[i] = start
        expected.view(-1)[i] = (sides[0] - sides[1]) / (2 * step)
    largest = expected.abs().max().item()
    assert largest > least
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)
