"""Randomness that depends on what is drawn, never on the process or the order of draws.

Every draw of the package comes from a generator seeded by (seed, purpose, step, block). A step of a
block can therefore be repeated on its own: a resumed run needs no generator state, and any
placement of blocks over processes draws the same noise.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "generator", "seeded"]


def derive_seed(seed: int, purpose: str, step: int = 0, block: str = "") -> int:
    """Return a seed in [0, 2⁶³) for one purpose, step and block.

    It is a cryptographic hash rather than a sum, so that (seed 1, step 2) and (seed 2, step 1)
    give unrelated seeds.
    """
    key = f"{seed}\x1f{purpose}\x1f{step}\x1f{block}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator(
    seed: int,
    purpose: str,
    step: int = 0,
    block: str = "",
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Return a new generator on ``device``, seeded by :func:`derive_seed`.

    Example:
        Step 7 of a block draws the same noise, whatever was drawn before and on which process:

        >>> first, again = (
        ...     torch.randn(3, generator=generator(0, "noise", step=7, block="block-2"))
        ...     for _ in range(2)
        ... )
        >>> torch.equal(first, again)
        True
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, step, block))


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators in this block, and restore their state afterwards.

    This is for code that can draw from nothing else: the initialisation of torch's modules and
    dropout in a user's own encoder.
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
