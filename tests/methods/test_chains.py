"""Which levels of a chain are kept."""

import pytest
import torch

from noprop.methods.chains import Chains


@pytest.mark.parametrize(("steps", "count"), [(1, 2), (40, 41), (41, 21), (90, 21), (1000, 21)])
def test_a_long_chain_keeps_the_levels_nearest_to_evenly_spaced_ones(steps, count):
    kept = Chains(1, steps, torch.zeros(2, 3), None, 0).kept
    assert len(kept) == count
    assert (kept[0], kept[-1]) == (0, steps)
    for i, level in enumerate(kept):
        assert abs(level - i * steps / (count - 1)) <= 0.5
