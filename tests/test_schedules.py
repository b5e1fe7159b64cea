"""Schedules: they rise from noise to clean, they are the paper's cosine, they keep their digits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noprop.diffusion import denoising_weights, step_coefficients
from noprop.schedules import alpha_bar, cosine_gamma, snr


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 10, 100, 1000])
def test_every_snr_difference_and_every_weight_is_positive(num_blocks):
    """Slip 1: with the schedule the other way round most blocks would maximise their loss."""
    gamma = cosine_gamma(num_blocks)
    assert gamma.shape == (num_blocks + 1,)
    assert (snr(gamma).diff() > 0).all()
    assert (alpha_bar(gamma).diff() > 0).all()
    assert (denoising_weights(gamma, eta=0.1) > 0).all()
    assert (denoising_weights(gamma.flip(0), eta=0.1) < 0).all()


def test_time_runs_from_noise_to_clean():
    power = alpha_bar(cosine_gamma(10))
    assert power[0] < 1e-5
    assert power[-1] > 0.999


def test_a_schedule_run_backwards_is_refused():
    with pytest.raises(ValueError, match="must fall strictly"):
        step_coefficients(cosine_gamma(10).flip(0))


@pytest.mark.parametrize("gamma", [[1.0], [1.0, 1.0], [2.0, 1.0, 1.0], [1.0, math.nan]])
def test_a_schedule_without_steps_is_refused(gamma):
    with pytest.raises(ValueError, match="must fall strictly"):
        step_coefficients(torch.tensor(gamma))


@given(st.integers(1, 300), st.floats(0.004, 0.1))
def test_levels_are_the_cosine_of_the_paper(num_blocks, s):
    """The default clamp moves the first level, where the cosine is 0, and no other."""
    t = torch.arange(num_blocks + 1, dtype=torch.float64)
    cosine = torch.cos(math.pi / 2 * (1 - t / num_blocks + s) / (1 + s)) ** 2
    levels = alpha_bar(cosine_gamma(num_blocks, offset=s))
    torch.testing.assert_close(levels[1:], cosine[1:], rtol=1e-9, atol=0)
    torch.testing.assert_close(levels[0].item(), 1e-6, rtol=1e-9, atol=0)


def test_the_clamp_bounds_both_ends():
    levels = alpha_bar(cosine_gamma(10, offset=1e-5, epsilon=0.01))
    torch.testing.assert_close(levels[[0, -1]], torch.tensor([0.01, 0.99], dtype=torch.float64))


@given(st.floats(-30, 30))
def test_snr_is_the_ratio_of_powers(value):
    gamma = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(snr(gamma), alpha_bar(gamma) / alpha_bar(-gamma))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"num_blocks": 10, "offset": 0.0}, "offset must be above 0"),
        ({"num_blocks": 10, "epsilon": 0.0}, r"epsilon must lie in \(0, 0.5\), got 0.0"),
        ({"num_blocks": 10, "epsilon": 0.5}, r"epsilon must lie in \(0, 0.5\)"),
        ({"num_blocks": 1000, "epsilon": 0.01}, "epsilon=0.01 makes neighbouring levels"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_gamma(**arguments)
