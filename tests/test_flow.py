"""Flow matching's path, its velocity, and where the best velocity leads (Eqs. 10-12)."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from noprop.flow import extrapolate, sample_path, target_velocity
from noprop.samplers import euler, heun
from tools import rng

PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LINE = torch.tensor([[-1.0], [0.3], [1.0]], dtype=torch.float64)


def test_the_path_has_the_stated_mean_and_deviation_in_each_row():
    """t, z_0 and z_1 of the same row, σ a deviation; as many rows as columns (slip 7).

    Scores of means and squares of 300 rows and 300 columns; the largest is beyond 6 with
    probability < 1e-5.
    """
    n, sigma = 300, 0.3
    z0, z1 = (torch.empty(n, n).normal_(generator=rng(seed)) for seed in (1, 2))
    t = torch.linspace(0, 1, n)
    z = sample_path(z0, z1, t, sigma, rng())
    mean = torch.stack([t[i] * z1[i] + (1 - t[i]) * z0[i] for i in range(n)])
    noise = (z - mean) / sigma
    for axis in (0, 1):
        assert (noise.mean(axis) * n**0.5).abs().max() < 6
        assert ((noise.square().mean(axis) - 1) * (n / 2) ** 0.5).abs().max() < 6


def test_without_sigma_the_path_is_a_straight_line_and_draws_nothing():
    """From the noise at t = 0 to the embedding at t = 1, at the target's velocity."""
    z0, z1 = (torch.empty(5, 5).double().normal_(generator=rng(seed)) for seed in (1, 2))
    generator = rng()
    before = generator.get_state()
    t = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.8], dtype=torch.float64)
    z = sample_path(z0, z1, t, 0.0, generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(z[0], z0[0])
    assert torch.equal(z[1], z1[1])
    later = sample_path(z0, z1, t + 0.1)
    torch.testing.assert_close(later - z, 0.1 * target_velocity(z0, z1))


def test_the_line_leads_to_the_embedding_from_anywhere_on_it():
    """z_t + (1 - t)(z_1 - z_0) = z_1, with a t for each row or one for all; square (slip 7)."""
    z0, z1 = (torch.empty(6, 6).double().normal_(generator=rng(seed)) for seed in (1, 2))
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    v = target_velocity(z0, z1)
    torch.testing.assert_close(extrapolate(sample_path(z0, z1, t), t, v), z1)
    one = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(extrapolate(sample_path(z0, z1, one.expand(6)), one, v), z1)


# -- the best velocity --------------------------------------------------------------------------


def best_velocity(z: Tensor, t: Tensor, sigma: float) -> Tensor:
    """E[u - z_0 | z_t] on the line.

    Given y, z_t is normal with mean t u_y and variance s² = (1-t)² + σ², so E[z_0 | z_t, y] =
    (1-t)/s² (z_t - t u_y); both are averaged under p(y|z_t).
    """
    square = (1 - t) ** 2 + sigma**2
    p = (PRIOR.log() - (z - t * LINE.T).square() / (2 * square)).softmax(1)
    u = p @ LINE
    return u - (1 - t) / square * (z - t * u)


def quantile(z: Tensor, t: Tensor, sigma: float) -> Tensor:
    """What part of the law of z_t, Σ_y p(y) N(t u_y, (1-t)² + σ²), lies below each z."""
    return torch.special.ndtr((z - t * LINE.T) / ((1 - t) ** 2 + sigma**2).sqrt()) @ PRIOR


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_the_derived_velocity_is_the_regression_of_the_library_s_target(sigma):
    """Its error is uncorrelated with functions of z_t and t: a least-squares fit, by brute force.

    Eight scores of 100 000 draws beyond 5: probability < 5e-6 a seed. The best guess under another
    path (time run backwards, σ for σ²) or of another target (z_0 - z_1) correlates at once.
    """
    n = 100_000
    y = torch.multinomial(PRIOR, n, replacement=True, generator=rng(1))
    z1, z0 = LINE[y], torch.empty(n, 1, dtype=torch.float64).normal_(generator=rng(2))
    t = 0.98 * torch.rand(n, generator=rng(3), dtype=torch.float64)
    z = sample_path(z0, z1, t, sigma, rng(4))
    error = (target_velocity(z0, z1) - best_velocity(z, t[:, None], sigma))[:, 0]
    x = z[:, 0]
    for f in (torch.ones(n), x, x**2, x.sin(), (3 * x).cos(), t, t * x, t**2 * (x > 0)):
        product = error * f
        assert abs(product.mean()) < 5 * product.std() / n**0.5
    assert error.square().mean() < target_velocity(z0, z1).square().mean()


def test_extrapolating_the_best_velocity_gives_the_best_guess_of_the_embedding():
    """At σ = 0, z̃_1 = E[u | z_t], what û is in diffusion."""
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    for time in (0.0, 0.5, 0.9):
        t = torch.tensor(time, dtype=torch.float64)
        p = (PRIOR.log() - (z - t * LINE.T).square() / (2 * (1 - t) ** 2)).softmax(1)
        torch.testing.assert_close(extrapolate(z, t, best_velocity(z, t, 0.0)), p @ LINE)


@pytest.mark.parametrize(("follow", "order"), [(euler, 1), (heun, 2)], ids=["euler", "heun"])
def test_the_best_velocity_keeps_each_particle_s_quantile(follow, order):
    """On a line paths cannot cross, so what lies below a particle stays: an exact solution.

    So the flow takes the law of z_0 to that of z_1, at the solver's rate. The law that it starts
    from is N(0, 1 + σ²), Eq. 10 at t = 0; at σ = 0.3 to keep the velocity smooth at t = 1.
    """
    sigma, z0 = 0.3, torch.linspace(-2.5, 2.5, 51, dtype=torch.float64)[:, None]

    def error(steps: int) -> float:
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        end = follow(lambda i, z: best_velocity(z, t[i], sigma), z0, t)
        return (quantile(end, t[-1], sigma) - quantile(z0, t[0], sigma)).abs().max().item()

    errors = [error(100 * 2**k) for k in range(3)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([order] * 2, abs=0.15)


@pytest.mark.parametrize("steps", [20, 200])
def test_on_the_straight_path_euler_ends_on_the_embeddings_as_often_as_they_occur(steps):
    """N(0, 1) at σ = 0, by its quantiles: no sampling error, so the bias alone: about 0.4/T.

    The last step takes the guess as it is: every particle ends on an embedding to 1e-3, but for
    those between two at the last.
    """
    n = 4001
    z0 = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    end = euler(lambda i, z: best_velocity(z, t[i], 0.0), z0, t)
    distance = (end - LINE.T).abs()
    frequency = distance.argmin(1).bincount(minlength=3) / n
    assert (frequency - PRIOR).abs().max() < 0.5 / steps
    assert (distance.min(1).values < 1e-3).double().mean() > 0.99
