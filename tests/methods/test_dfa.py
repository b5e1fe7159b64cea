"""Direct feedback alignment against its closed form, and against backpropagation."""

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.embeddings import Embedding, one_hot_embeddings
from noprop.layers import Sequence
from noprop.methods.dfa import FeedbackLayer, FeedbackStack, OutputLayer, random_feedback
from noprop.task import Task
from tools import rng

SIZES, M, B = (7, 6, 5), 3, 4


def stack(nonlinearity: type[nn.Module]) -> FeedbackStack:
    """Two hidden layers in float64, without dropout."""
    pairs = enumerate(pairwise(SIZES), start=1)
    torch.manual_seed(0)
    layers = [
        FeedbackLayer(n, Sequence(nn.Linear(i, o), nonlinearity()), M, o, seed=n)
        for n, (i, o) in pairs
    ]
    for unit in layers:
        unit.module.double()
    output = OutputLayer(nn.Linear(SIZES[-1], M).double())
    return FeedbackStack(layers, output, Embedding(one_hot_embeddings(M), learned=False))


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(B, SIZES[0], dtype=torch.float64, generator=rng(9))
    return x, torch.tensor([0, 2, 1, 1])


def gradients(method: FeedbackStack, x: Tensor, y: Tensor) -> list[Tensor]:
    read = method.signals(x, y, None)
    for unit in method.units:
        unit.loss(read, y, rng()).total.backward()
    found = [p.grad for p in method.parameters()]
    return [g for g in found if g is not None]


@pytest.fixture(autouse=True)
def keeps_global_seed():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def test_the_update_is_the_closed_form():
    r"""$\nabla W_l = ((e B_l) \odot f'(a_l))^T h_{l-1}$ with e = (softmax - y) / B, by hand."""
    method, (x, y) = stack(nn.Tanh), batch()
    found = gradients(method, x, y)
    (w1, b1), (w2, b2) = ((u.layer[0].weight, u.layer[0].bias) for u in method.layers)  # pyright: ignore
    w3, b3 = method.output.layer.weight, method.output.layer.bias
    h1 = (x @ w1.T + b1).tanh()
    h2 = (h1 @ w2.T + b2).tanh()
    e = ((h2 @ w3.T + b3).softmax(1) - torch.eye(M, dtype=torch.float64)[y]) / B
    d2 = (e @ method.layers[1].feedback) * (1 - h2**2)
    d1 = (e @ method.layers[0].feedback) * (1 - h1**2)
    wanted = [d1.T @ x, d1.sum(0), d2.T @ h1, d2.sum(0), e.T @ h2, e.sum(0)]
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize(("nonlinearity", "exact"), [(nn.Identity, True), (nn.Tanh, False)])
def test_the_weights_above_as_feedback_give_backpropagation_in_a_linear_net(nonlinearity, exact):
    r"""$B_l = W_{L+1} \cdots W_{l+1}$: the error through the later weights, in one step."""
    method, (x, y) = stack(nonlinearity), batch()
    above = method.output.layer.weight.detach()
    for unit in reversed(method.layers):
        unit.feedback.copy_(above)
        above = above @ unit.layer[0].weight.detach()  # pyright: ignore
    found = gradients(method, x, y)
    h = x
    for unit in method.layers:
        h = unit.layer(h)
    loss = F.cross_entropy(method.output.layer(h), y)
    wanted = torch.autograd.grad(loss, method.parameters())
    same = [torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted, strict=True)]
    last = [True] * 4  # the error reaches the output and, but for its own f', the layer below it
    assert same == [True] * 6 if exact else same == [False, False, *last]


def test_every_unit_reports_the_cross_entropy_of_the_network():
    method, (x, y) = stack(nn.Tanh), batch()
    read = method.signals(x, y, None)
    with torch.no_grad():
        (p,) = method.answers(x)
    wanted = F.nll_loss(p.log(), y)
    for unit in method.units:
        torch.testing.assert_close(
            unit.loss(read, y, rng()).total.detach().float(), wanted, rtol=1e-5, atol=0
        )


def built(**changes: Any) -> FeedbackStack:
    task = Task((1, 28, 28), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    config = replace(RunConfig(), {"method.name": "dfa", **changes})
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, FeedbackStack)
    return method


def test_weights_keep_the_feedback_that_they_learned_from():
    """In a run of another seed, as ``--init`` makes one; a new layer has that of its run."""
    source, other, own = built(), built(**{"train.seed": 1}), built(**{"train.seed": 1})
    for unit, there in zip(other.layers[:-1], source.layers, strict=False):
        unit.module.load_state_dict(there.module.state_dict())
        assert torch.equal(unit.feedback, there.feedback)
    last = other.layers[-1]
    assert torch.equal(last.feedback, own.layers[-1].feedback)
    assert not torch.equal(last.feedback, source.layers[-1].feedback)


def test_the_feedback_is_drawn_from_the_seed_and_in_no_file():
    """Every layer has its own, and another seed another one."""
    one, again, other = built(), built(), built(**{"train.seed": 1})
    for a, b, c in zip(one.layers, again.layers, other.layers, strict=True):
        assert torch.equal(a.feedback, b.feedback)
        assert not torch.equal(a.feedback, c.feedback)
        assert "feedback" not in a.module.state_dict()  # but its seed
        assert not a.feedback.requires_grad
    starts = [unit.feedback.flatten()[:2000] for unit in one.layers]
    for a, b in combinations(starts, 2):
        # The product of two entries has the deviation 0.1. Six pairs: < 4e-6 with a fresh seed.
        assert abs((a * b).mean()) < 5 * 0.1 / 2000**0.5
    shapes = [unit.feedback.shape for unit in one.layers]
    assert shapes == [(10, 32 * 12 * 12), (10, 64 * 10 * 10), (10, 2048), (10, 256)]
    long = random_feedback(10, 20_000, rng())
    # The deviation of the mean square of 200,000 entries is 0.1 · sqrt(2 / 200,000).
    assert abs(long.square().mean() - 0.1) < 5 * 0.1 * (2 / 200_000) ** 0.5
