"""Seeds: distinct for distinct keys, and a function of the key alone."""

import pytest
import torch

from noprop.randomness import derive_seed, generator, seeded


def test_distinct_keys_have_distinct_seeds():
    """10 000 keys that a sum, a product or a joined string without separators would confuse.

    Among 10 000 random 63-bit numbers two agree with probability 6e-12.
    """
    keys = [
        (seed, purpose, step, block)
        for seed in (0, 1, 2, 11, 111)
        for purpose in ("noise", "noise1", "dropout", "")
        for step in (*range(48), 111, 10**12)
        for block in ("", "1", "11", "2", "t1", "1t", "noise", "0", "-1", "01")
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys) == 10_000
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys[:100])


def test_seeds_do_not_change_between_runs_or_versions():
    """Written down: a change of the key's form would change every published number."""
    assert derive_seed(0, "noise", 3, "2") == 6894435531444603914


def test_a_generator_is_a_function_of_its_key_alone():
    torch.manual_seed(3)
    first = torch.randn(5, generator=generator(1, "noise", 2, "b"))
    torch.manual_seed(4)
    torch.randn(7, generator=generator(1, "other", 2, "b"))
    again = torch.randn(5, generator=generator(1, "noise", 2, "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(5, generator=generator(1, "noise", 3, "b")))


def test_a_generator_does_not_touch_the_global_one():
    before = torch.get_rng_state()
    torch.randn(5, generator=generator(0, "noise"))
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_draws_by_its_seed_and_restores_the_global_state():
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        with seeded(seed):
            draws.append(torch.randn(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_restores_the_global_state_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="must match"), seeded(1):
        torch.randn(4).add_(torch.randn(5))
    assert torch.equal(before, torch.get_rng_state())
