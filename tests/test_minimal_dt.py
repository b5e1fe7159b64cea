"""The package held against the one-screen example, which was written without it.

The example takes Eq. 6 as printed, on signal powers; the package keeps its digits with other forms
of the same. In float64 both must give the same numbers, from the same draws.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from noprop.diffusion import denoising_weights, prior_kl, sample_latent, step_coefficients
from noprop.embeddings import Embedding
from noprop.methods.dt import Block, ReadoutUnit
from noprop.networks import DiscreteBlock
from noprop.readouts import SoftmaxReadout
from noprop.samplers import ancestral
from noprop.schedules import cosine_gamma

path = Path(__file__).parents[1] / "examples" / "minimal_dt.py"
spec = importlib.util.spec_from_file_location("minimal_dt", path)
assert spec is not None
assert spec.loader is not None
minimal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(minimal)

W = torch.linspace(-1, 2, 15, dtype=torch.float64).sin().view(5, 3)  # five classes, d = 3
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def seeded():
    return torch.Generator().manual_seed(7)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def levels(num_blocks):
    """The cosine, and one whose noisy end still carries signal, so that the prior term counts."""
    return [
        minimal.cosine_gamma(num_blocks),
        torch.linspace(1.5, -4, num_blocks + 1, dtype=torch.float64),
    ]


class Tanh(nn.Module):
    """A block that depends on z, on x and on itself, and on nothing else."""

    def __init__(self, t):
        super().__init__()
        self.t = t

    def forward(self, z_and_x):
        return torch.tanh(z_and_x @ torch.ones(5, 5, dtype=z_and_x.dtype).triu() + self.t)


@pytest.mark.parametrize("num_blocks", [1, 5, 10, 50, 1000])
@pytest.mark.parametrize("offset", [0.008, 0.1])
def test_the_schedule_agrees(num_blocks, offset):
    gamma = cosine_gamma(num_blocks, offset=offset)
    assert_same(gamma, minimal.cosine_gamma(num_blocks, offset))


@pytest.mark.parametrize("num_blocks", [1, 5, 10, 50, 1000])
def test_coefficients_agree(num_blocks):
    for gamma in levels(num_blocks):
        k = step_coefficients(gamma)
        assert_same(torch.stack([k.a, k.b, k.c], dim=1), minimal.coefficients(gamma))


@pytest.mark.parametrize("num_blocks", [1, 3, 10])
def test_latents_and_weighted_losses_agree(num_blocks):
    """Weight, level and target of every block: a block that read z_t in place of z_{t-1} fails."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    for gamma in levels(num_blocks):
        weights = denoising_weights(gamma, eta=0.1)
        for t in range(1, num_blocks + 1):
            z = sample_latent(W[LABELS], gamma[t - 1], seeded())
            assert_same(z, minimal.sample_latent(W[LABELS], gamma[t - 1], seeded()))
            guess = Tanh(t)(torch.cat([z, x], dim=1)).softmax(dim=1) @ W
            loss = weights[t - 1] * (guess - W[LABELS]).square().sum(dim=1).mean()
            expected = minimal.block_loss(Tanh(t), x, LABELS, W, gamma, t, seeded())
            assert_same(loss, expected)


def test_the_prior_agrees():
    """The cross-entropy of a readout that knows nothing is log m; what is left is the prior."""

    def knows_nothing(z):
        return torch.zeros(len(z), len(W), dtype=z.dtype)

    for gamma in levels(10):
        loss = minimal.readout_loss(knows_nothing, LABELS, W, gamma, seeded())
        prior = prior_kl(W[LABELS], gamma[0]).mean()
        assert_same(loss - math.log(len(W)), prior)


@pytest.mark.parametrize("noise", [True, False])
def test_the_chain_agrees(noise):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    blocks = [Tanh(t) for t in range(8)]
    for gamma in levels(8):
        k = step_coefficients(gamma)
        found = ancestral(
            lambda i, z: blocks[i](torch.cat([z, x], dim=1)).softmax(dim=1) @ W,
            W[LABELS],
            k.a,
            k.b,
            k.c,
            seeded() if noise else None,
        )
        draws = seeded() if noise else None
        expected = minimal.chain(blocks, x, W[LABELS], W, gamma, draws)
        assert_same(found, expected)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_units_of_the_package_have_the_losses_of_the_example(t):
    """Block and readout as they are trained, in their own float32."""
    gamma, embedding = levels(4)[1], Embedding(W.float(), learned=False)
    x = torch.linspace(-1, 1, 6 * 7).sin().view(6, 7)
    network = DiscreteBlock((7,), (3,), 5).eval()
    loss = Block(t, network, embedding, gamma, eta=0.1).loss(x, LABELS, seeded())
    expected = minimal.block_loss(
        lambda z_and_x: network(z_and_x[:, :3], network.context(z_and_x[:, 3:])),
        *(x, LABELS, W.float(), gamma, t, seeded()),
    )
    torch.testing.assert_close(loss.total, expected.float(), rtol=1e-5, atol=0)
    readout = SoftmaxReadout(W.float(), "nearest")
    loss = ReadoutUnit(readout, embedding, gamma).loss(x, LABELS, seeded())
    expected = minimal.readout_loss(readout.linear, LABELS, W.float(), gamma, seeded())
    torch.testing.assert_close(loss.total, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_the_example_learns():
    with torch.random.fork_rng():  # it seeds torch's own generator
        one, mean = minimal.main(T=5, epochs=6)
    assert one > 0.85
    assert mean > 0.9
