"""The package held against the one-screen example, which was written without it."""

import importlib.util
from pathlib import Path

import pytest
import torch

from noprop.diffusion import step_coefficients
from noprop.schedules import cosine_gamma

path = Path(__file__).parents[1] / "examples" / "minimal_dt.py"
spec = importlib.util.spec_from_file_location("minimal_dt", path)
assert spec is not None
assert spec.loader is not None
minimal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(minimal)


@pytest.mark.parametrize("num_blocks", [1, 5, 10, 50])
def test_schedule_and_coefficients_agree(num_blocks):
    gamma = cosine_gamma(num_blocks)
    torch.testing.assert_close(gamma, minimal.cosine_gamma(num_blocks), rtol=1e-9, atol=1e-9)
    k = step_coefficients(gamma)
    for ours, theirs in zip((k.a, k.b, k.c), minimal.coefficients(gamma), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_the_example_learns():
    one, mean = minimal.main(T=4, epochs=3)
    assert one > 0.8
    assert mean > 0.9
