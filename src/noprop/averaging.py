"""Weights for averaging several estimates of p(y|x), calibration error and intervals."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["calibration_error", "fit_path_weights", "reliability", "wilson_interval"]


def fit_path_weights(
    path: Float[Tensor, "steps batch classes"], y: Int64[Tensor, " batch"], iterations: int = 500
) -> Float[Tensor, " steps"]:
    """Return weights w over blocks that minimise the log-loss of the mixture Σ_t w_t p_t(y|x).

    Expectation maximisation (EM): the problem is convex in w, each iteration lowers the loss, and
    no step size is needed. Fit the weights on the validation split.

    Args:
        path: Class probabilities of each block, shape (T, B, m).
        y: Labels, shape (B,).
        iterations: Number of iterations of EM.

    Returns:
        The weights, shape (T,), ≥ 0 with sum 1.

    Example:
        Of a block that knows the labels and one that guesses, the first has all the weight:

        >>> knows, guesses = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.full((2, 2), 0.5)
        >>> fit_path_weights(torch.stack([knows, guesses]), torch.tensor([0, 1])).round(decimals=3)
        tensor([1., 0.])
    """
    likelihood = path[:, torch.arange(y.shape[0], device=y.device), y]
    likelihood = likelihood.cpu().double().clamp_min(1e-12)  # not every device has float64
    weights = torch.full((path.shape[0],), 1 / path.shape[0], dtype=torch.float64)
    for _ in range(iterations):
        joint = weights[:, None] * likelihood
        weights = (joint / joint.sum(dim=0)).mean(dim=1)
    return weights.float()


def calibration_error(
    probabilities: Float[Tensor, "batch classes"], y: Int64[Tensor, " batch"], bins: int = 15
) -> float:
    """Return the expected calibration error: Σ over bins of share × |accuracy - confidence|."""
    confidence, label = probabilities.max(dim=1)
    _, confidences, correct = reliability(confidence, label == y, bins)
    return (correct - confidences).abs().sum().item() / len(y)


def reliability(
    confidence: Float[Tensor, " batch"], correct: Bool[Tensor, " batch"], bins: int = 15
) -> Float[Tensor, "3 bins"]:
    """Return number, sum of confidences and number correct of the examples in each bin.

    The bins divide confidences 0..1 evenly. Per example of a bin, the last two are its mean
    confidence and its accuracy, equal for a calibrated classifier.
    """
    confidence = confidence.cpu().double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    sums = torch.stack([torch.ones_like(confidence), confidence, correct.cpu().double()])
    return torch.zeros(3, bins, dtype=torch.float64).index_add(1, index, sums)


def wilson_interval(share: float, examples: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share of independent examples, by default of 95 %.

    Unlike share ± z standard errors it has a width at 0 and 1: 359 right of 359 tell no more than
    that at least 98.9 % are.

    Args:
        share: Share that was found, in 0..1.
        examples: Number n of examples, at least 1.
        z: Quantile of the normal distribution.

    Example:
        >>> [round(100 * end, 2) for end in wilson_interval(1.0, 359)]
        [98.94, 100.0]
    """
    centre = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    variance = share * (1 - share) / examples + (z / (2 * examples)) ** 2
    half = z * math.sqrt(variance) / (1 + z * z / examples)
    return max(0.0, centre - half), min(1.0, centre + half)
