"""The plain loops compute what ours does: else a ratio to them would mean nothing."""

import pytest
import torch
from torch import nn

from noprop.bench.plain import PlainContinuous, PlainDiscrete, plain_inference, plain_training
from noprop.bench.settings import Settings
from noprop.build import build_embedding, build_method
from noprop.config import replace
from noprop.networks import ContinuousBlock, DiscreteBlock, sinusoidal_embedding

SETTINGS = Settings(blocks=3, steps=4, solver_steps=4)
SHAPES = [(1, 28, 28), (3, 32, 32)]
G = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def same_draws():
    """Every test has the same draws, whichever run before it in its process."""
    G.manual_seed(0)


def fill(module):
    """Weights and statistics of no special value."""
    for p in module.parameters():
        p.data.add_(torch.randn(p.shape, generator=G) * 0.05)
    for name, b in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            b.copy_(0.5 + torch.rand(b.shape, generator=G))
    return module.eval()


def copy(ours: nn.Module, plain: nn.Module):
    """Weights of ours in the plain one: both list them in the order of the figure."""
    for kind in ("parameters", "buffers"):
        a, b = list(getattr(ours, kind)()), list(getattr(plain, kind)())
        assert [t.shape for t in a] == [t.shape for t in b]
        for source, target in zip(a, b, strict=True):
            target.data.copy_(source)
    return plain.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_discrete_block_is_ours(shape):
    ours = fill(DiscreteBlock(shape, (10,), 10))
    plain = copy(ours, PlainDiscrete(shape, 10))
    x, z = torch.randn(4, *shape, generator=G), torch.randn(4, 10, generator=G)
    torch.testing.assert_close(plain(z, x), ours(z, ours.context(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_continuous_network_is_ours(shape):
    ours = fill(ContinuousBlock(shape, (10,), 10))
    plain = copy(ours, PlainContinuous(shape, 10))
    x, z, t = (
        torch.randn(4, *shape, generator=G),
        torch.randn(4, 10, generator=G),
        torch.rand(4, generator=G),
    )
    expected = ours(z, ours.context(x), ours.time_context(t))
    torch.testing.assert_close(plain(z, x, t), expected, rtol=1e-4, atol=1e-5)
    assert sinusoidal_embedding(t).shape == (4, 64)


@pytest.mark.parametrize("method", ["dt", "ct", "fm", "backprop", "adjoint"])
def test_the_plain_chain_ends_where_ours_does(method):
    """The mean chain of both with the same weights; CT's schedule is the plain loop's own line."""
    own = {"method.schedule": "linear", "method.gamma_noise": 6.0}
    changes = own if method == "ct" else {}
    config, task = replace(SETTINGS.config(method), changes), SETTINGS.task
    built = build_method(config, task, build_embedding(config, task, None))
    steps = 3 if method in ("dt", "backprop") else 4
    _, networks = plain_training(method, SETTINGS.shape, SETTINGS.classes, steps)
    modules = [unit.module for unit in built.units]
    if method == "dt":
        modules = modules[:-1]
    elif method == "backprop":
        modules = list(modules[0].get_submodule("blocks").children())
    else:
        modules = [modules[0].get_submodule("network")]
    chain = [copy(fill(o), p) for o, p in zip(modules, networks, strict=False)]
    assert len(chain) == len(modules)
    x = torch.randn(4, *SETTINGS.shape, generator=G)
    ours = built.predict(x, torch.Generator(), noise=False).latents[-1]
    torch.testing.assert_close(plain_inference(method, chain, x, steps), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dt", "ct", "fm", "backprop", "adjoint"])
def test_the_plain_loop_learns(method):
    """Ten bright rows, one a class: its chain answers after a few mini-batches."""
    torch.manual_seed(0)  # it draws from torch's own generator, as plain loops do
    steps = 2 if method in ("dt", "backprop") else 4
    turn, networks = plain_training(method, SETTINGS.shape, SETTINGS.classes, steps)

    def batch(n):
        y = torch.randint(10, (n,))
        x = torch.randn(n, *SETTINGS.shape) * 0.1
        for row in (0, 1):
            x[torch.arange(n), 0, 2 * y + row + 3] += 2
        return x, y

    for _ in range(40):
        turn(*batch(64))
    for network in networks:
        network.eval()
    x, y = batch(200)
    z = plain_inference(method, networks[:-1], x, steps)
    guess = networks[-1](z) if method in ("backprop", "adjoint") else z
    # Through the whole chain it learns more slowly; by chance one in ten is right.
    least = 0.3 if method == "backprop" else 0.9
    assert (guess.argmax(1) == y).float().mean() > least
