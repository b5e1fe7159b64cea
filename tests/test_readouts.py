"""Readouts: the nearest-embedding start and the radial formula, by brute force."""

import pytest
import torch

from noprop.embeddings import (
    nearest_class,
    one_hot_embeddings,
    orthogonal_embeddings,
    random_embeddings,
)
from noprop.randomness import seeded
from noprop.readouts import RadialReadout, SoftmaxReadout


def tables():
    generator = torch.Generator().manual_seed(0)
    return {
        "one-hot": one_hot_embeddings(5),
        "orthogonal": orthogonal_embeddings(5, 20, generator),
        "random": random_embeddings(6, 4, generator),
        "uneven": random_embeddings(5, 3, generator) * torch.arange(1, 6)[:, None],
    }


@pytest.mark.parametrize("name", tables())
def test_the_softmax_readout_starts_as_the_nearest_embedding(name):
    """Unequal lengths too: without the bias the longest embedding would win far too often."""
    weight = tables()[name]
    readout = SoftmaxReadout(weight)
    z = 2 * torch.randn(500, weight.shape[1], generator=torch.Generator().manual_seed(1))
    assert torch.equal(readout(weight, weight).argmax(1), torch.arange(len(weight)))
    assert torch.equal(readout(z, weight).argmax(1), nearest_class(z, weight))


@pytest.mark.parametrize("name", tables())
def test_the_closest_pair_is_told_apart_by_ten_nats(name):
    weight = tables()[name]
    logits = SoftmaxReadout(weight)(weight, weight)
    margin = logits.diagonal()[:, None] - logits
    margin.fill_diagonal_(torch.inf)
    torch.testing.assert_close(margin.min().item(), 10.0, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["one-hot", "orthogonal"])
def test_the_radial_readout_starts_as_the_nearest_embedding(name):
    """Between embeddings of one length and one distance; elsewhere ỹ may lie nearer a third."""
    weight = tables()[name]
    readout = RadialReadout(weight)
    z = torch.randn(500, weight.shape[1], generator=torch.Generator().manual_seed(1))
    log_p = readout(z, weight).log_softmax(1)
    # Where the two best are within rounding of each other either may come first.
    two = log_p.topk(2, dim=1).values
    clear = (two[:, 0] - two[:, 1]) > 1e-3
    assert clear.sum() > 490
    assert torch.equal(log_p.argmax(1)[clear], nearest_class(z, weight)[clear])


@pytest.mark.parametrize("name", tables())
def test_the_radial_readout_classifies_each_embedding_as_itself(name):
    """By 16 nats and no more for the closest pair, less what ỹ ≠ u_y costs (under 0.1)."""
    weight = tables()[name]
    logits = RadialReadout(weight)(weight, weight)
    assert torch.equal(logits.argmax(1), torch.arange(len(weight)))
    margin = logits.diagonal()[:, None] - logits
    margin.fill_diagonal_(torch.inf)
    assert margin.min().item() == pytest.approx(16, abs=0.1)


@pytest.mark.parametrize("sigma", [None, 0.7])
def test_the_radial_formula(sigma):
    """Eqs. 15, 16 term by term; σ for σ², or a missing 2, is red."""
    weight = tables()["random"]
    readout = RadialReadout(weight, "random", sigma)
    today = weight + 0.3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    if sigma is None:
        sigma = torch.pdist(weight).min().item() / 32**0.5
    found = readout(z, today).log_softmax(1)
    for i in range(5):
        f = (readout.linear.weight @ z[i] + readout.linear.bias).softmax(0)
        guess = sum(f[k] * today[k] for k in range(6))
        p = torch.stack([(-(guess - today[k]).square().sum() / (2 * sigma**2)) for k in range(6)])
        torch.testing.assert_close(found[i], p.log_softmax(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("readout", [SoftmaxReadout, RadialReadout])
def test_a_random_start_is_the_start_of_torch(readout):
    weight = tables()["random"]
    with seeded(0):
        linear = readout(weight, "random").linear
    with seeded(0):
        usual = torch.nn.Linear(4, 6)
    assert torch.equal(linear.weight, usual.weight)
    assert torch.equal(linear.bias, usual.bias)
    assert not torch.equal(readout(weight).linear.weight, usual.weight)


def test_only_the_linear_layer_is_trained_and_it_owns_its_numbers():
    weight = tables()["random"].requires_grad_()
    for readout in (SoftmaxReadout(weight), RadialReadout(weight)):
        assert [name for name, _ in readout.named_parameters()] == ["linear.weight", "linear.bias"]
        assert readout.linear.weight.is_leaf
    assert "sigma" in RadialReadout(weight).state_dict()
