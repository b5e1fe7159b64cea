"""The ways to step T blocks compute the same updates."""

import pytest
import torch

import block_steps
from noprop.bench.settings import Settings


def trained(way) -> list[torch.Tensor]:
    """Return the weights of two blocks without dropout, after two steps."""
    blocks = block_steps.Blocks(Settings(blocks=2), torch.device("cpu"), bf16=False)
    for network in blocks.networks:
        for layer in network.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(8, *blocks.shape, generator=draws)
    noise = torch.randn(2, 8, blocks.classes, generator=draws)
    blocks.latents = lambda u: u + noise
    step = way(blocks)
    for _ in range(2):
        step(x, torch.arange(8))
    # A bias before batch norm has no gradient but rounding, of which AdamW takes the sign.
    return [p.detach().clone() for n in blocks.networks for p in n.parameters() if p.dim() > 1]


@pytest.mark.slow
def test_stacked_weights_are_trained_as_those_of_the_loop():
    before = trained(lambda blocks: lambda x, y: None)
    loop, stacked = trained(block_steps.loop), trained(block_steps.stacked)
    for a, b, start in zip(loop, stacked, before, strict=True):
        moved = (a - start).abs().mean()
        assert moved > 5e-4
        assert (a - b).abs().mean() < 0.02 * moved
