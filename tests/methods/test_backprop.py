"""The back-propagation baseline: Eqs. 17-19 by hand, and where its one backward pass leads.

The networks are written down rather than trained, so that every z_t can be computed on paper.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.embeddings import Embedding, random_embeddings
from noprop.methods.backprop import BackpropChain, ChainUnit
from noprop.networks import DiscreteBlock
from noprop.readouts import RadialReadout, SoftmaxReadout
from noprop.task import Task
from tools import rng

T, M, D, B = 4, 3, 5, 6


class Known(DiscreteBlock):
    """Logits x + z @ ``slope``: what a block is shown can be read off what it answers."""

    def __init__(self, slope: Tensor):
        nn.Module.__init__(self)
        self.slope = nn.Parameter(slope)

    def context(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x

    def forward(
        self, z: Tensor, context: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return context + z @ self.slope


def known(*, learned: bool = False, mixing: float = 0.5, radial: bool = False) -> BackpropChain:
    """Four blocks with slopes of their own, on embeddings of no particular length."""
    blocks = [Known(torch.empty(D, M).normal_(generator=rng(t))) for t in range(1, T + 1)]
    weight = 2 * random_embeddings(M, D, rng(9))
    readout = (RadialReadout if radial else SoftmaxReadout)(weight)
    unit = ChainUnit(blocks, readout, Embedding(weight.clone(), learned=learned), mixing=mixing)
    return BackpropChain(unit)


def batch() -> tuple[Tensor, Tensor]:
    """Six inputs, which are logits, and their labels."""
    return torch.empty(B, M).normal_(generator=rng(20)), torch.arange(B) % M


def by_hand(method: BackpropChain, x: Tensor, z: Tensor) -> list[Tensor]:
    """z_0, …, z_T: z_t = (1 - tanh w_t) z_{t-1} + tanh w_t softmax(x + z_{t-1} S_t) W (Eq. 18)."""
    weight, levels = method.embedding.weight, [z]
    for t in range(T):
        alpha = torch.tanh(method.unit.w[t])
        block = method.unit.blocks[t]
        assert isinstance(block, Known)
        guess = torch.softmax(x + levels[t] @ block.slope, dim=1) @ weight
        levels.append((1 - alpha) * levels[t] + alpha * guess)
    return levels


def uneven(method: BackpropChain) -> None:
    """A w_t of its own for each block, one of them negative."""
    with torch.no_grad():
        method.unit.w.copy_(torch.tensor([0.3, 1.2, -0.4, 0.05]))


# -- the chain -----------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_training_s_chain_is_eqs_17_to_19(learned):
    """Its one term is the cross-entropy of the readout of z_T, from z_0 ~ N(0, I).

    α and 1 - α swapped, w for tanh w, a block that is shown z_t or z_0, or one w for all blocks:
    each would be seen.
    """
    method = known(learned=learned)
    uneven(method)
    x, y = batch()
    terms = method.unit.loss(x, y, rng(3)).terms
    assert list(terms) == ["classification"]
    z0 = torch.empty(B, D).normal_(generator=rng(3))
    end = by_hand(method, x, z0)[-1]
    readout = method.unit.readout
    logits = end @ readout.linear.weight.T + readout.linear.bias
    expected = -sum(F.log_softmax(logits, 1)[i, y[i]] for i in range(B)) / B
    torch.testing.assert_close(terms["classification"], expected)


def test_every_chain_starts_from_noise_of_its_own():
    """z_0 ~ N(0, I): with α_t = 0 the end is z_0. False alarm of |score| > 5 in 5 + 5: < 6e-6."""
    method = known()
    with torch.no_grad():
        method.unit.w.zero_()
    n = 20_000
    seen: list[Tensor] = []
    method.unit.readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.unit.loss(torch.zeros(n, M), torch.zeros(n, dtype=torch.int64), rng(1))
    (z,) = seen
    assert (z.mean(0) * n**0.5).abs().max() < 5
    assert ((z.square().mean(0) - 1) * (n / 2) ** 0.5).abs().max() < 5


def test_prediction_s_chain_is_that_of_training():
    """The same levels by hand, with every α_t as it is learned, not as it began."""
    method = known()
    before = method.predict(batch()[0], rng(4))
    uneven(method)
    x, _ = batch()
    p = method.predict(x, rng(4))
    z0 = torch.empty(B, D).normal_(generator=rng(4))
    levels = torch.stack(by_hand(method, x, z0))
    torch.testing.assert_close(p.latents, levels.detach())
    assert torch.equal(before.latents[0], p.latents[0])
    assert (before.latents[1:] - p.latents[1:]).abs().amax(dim=(1, 2)).min() > 0.01
    readout = method.unit.readout(levels[-1], method.embedding.weight).softmax(1)
    torch.testing.assert_close(p.probabilities, readout.detach())
    assert p.times.tolist() == [0, 1, 2, 3, 4]
    assert p.evaluations == T


def test_the_mean_chain_starts_at_the_mean_of_the_noise():
    """Without noise z_0 = 0; the blocks are what they were."""
    method = known()
    x, _ = batch()
    p = method.predict(x, rng(4), noise=False)
    levels = torch.stack(by_hand(method, x, torch.zeros(B, D)))
    torch.testing.assert_close(p.latents, levels.detach())


def test_many_chains_are_averaged_over_their_noise():
    """K chains as one batch: row k·B + i is chain k of input i, each the chain by hand."""
    method = known()
    uneven(method)
    x, _ = batch()
    p = method.predict(x, rng(5), samples=3)
    z0 = torch.empty(3 * B, D).normal_(generator=rng(5))
    ends = by_hand(method, x.repeat(3, 1), z0)[-1]
    each = method.unit.readout(ends, method.embedding.weight).softmax(1).view(3, B, M).detach()
    torch.testing.assert_close(p.probabilities, each.mean(0))
    torch.testing.assert_close(p.single, each[0])


def test_with_one_guess_the_chain_is_a_geometric_mean_of_noise_and_guess():
    """û constant: z_T = Π(1 - α_t) z_0 + (1 - Π(1 - α_t)) û, whatever the order of the α_t."""
    method = known(mixing=0.3)
    for block in method.unit.blocks:
        nn.init.zeros_(block.get_parameter("slope"))
    x, _ = batch()
    p = method.predict(x, rng(6))
    guess = x.softmax(1) @ method.embedding.weight
    rest = 0.7**T
    torch.testing.assert_close(p.latents[-1], rest * p.latents[0] + (1 - rest) * guess)


# -- α_t -----------------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99), st.integers(1, 12))
def test_every_mixing_weight_starts_where_it_is_told_to(mixing, blocks):
    """α_t = tanh(w_t) = ``mixing``: the argument is α itself, not w."""
    readout = SoftmaxReadout(torch.eye(M))
    networks = [Known(torch.zeros(M, M)) for _ in range(blocks)]
    unit = ChainUnit(networks, readout, Embedding(torch.eye(M), learned=False), mixing=mixing)
    assert unit.mixing.shape == (blocks,)
    assert unit.mixing.tolist() == pytest.approx([mixing] * blocks, rel=1e-5)
    assert unit.w.tolist() == pytest.approx([math.atanh(mixing)] * blocks, rel=1e-4)
    assert any(p is unit.w for p in unit.parameters)


def test_the_configuration_s_mixing_is_the_chain_s():
    config = replace(
        RunConfig(), {"method.name": "backprop", "method.num_blocks": 3, "method.mixing": 0.2}
    )
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, BackpropChain)
    assert method.unit.mixing.tolist() == pytest.approx([0.2] * 3)
    names = set(method.unit.module.state_dict())
    assert "w" in names  # so it is saved, and loaded again
    first, second = (b.state_dict() for b in method.unit.blocks[:2])
    assert not torch.equal(first["head.join.weight"], second["head.join.weight"])


def test_facts_are_the_mixing_weights_of_today():
    method = known()
    assert method.facts() == {"mixing": [0.5] * T}
    uneven(method)
    expected = [round(math.tanh(w), 4) for w in (0.3, 1.2, -0.4, 0.05)]
    assert method.facts()["mixing"] == pytest.approx(expected, abs=1e-9)


def test_the_baseline_has_no_path_no_control_and_no_bound():
    method = known()
    x, y = batch()
    assert method.path_weights is None
    assert method.predict(x, rng()).path is None
    assert method.control(rng(), method.prepare(x)) is None
    assert method.bound(x, y, rng()) is None


# -- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("radial", [False, True])
def test_one_backward_pass_is_the_gradient_of_the_whole_chain(radial):
    """Of w_t, every block and W_Embed, against central differences of the loss, in float64.

    A chain detached somewhere would give the blocks before it nothing.
    """
    method = known(learned=True, radial=radial)
    uneven(method)
    for module in (method.unit.module, method.shared):
        module.double()
    x, y = batch()
    x = x.double()
    z0 = torch.empty(B, D, dtype=torch.float64).normal_(generator=rng(7))
    parameters = method.parameters()
    assert len(parameters) == T + 3 + 1

    def loss(*_: Tensor) -> Tensor:
        end = by_hand(method, x, z0)[-1]
        return F.cross_entropy(method.unit.readout(end, method.embedding.weight), y)

    assert torch.autograd.gradcheck(loss, parameters)
    expected = torch.autograd.grad(loss(), parameters)
    mine = known(learned=True, radial=radial)
    uneven(mine)
    mine.unit.module.double()
    mine.shared.double()
    with pytest.MonkeyPatch.context() as patch:  # initial_latent gives float32
        patch.setattr("noprop.methods.backprop.initial_latent", lambda *_: z0)
        found = torch.autograd.grad(mine.unit.loss(x, y, rng()).total, mine.parameters())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        assert b.abs().max() > 1e-6


def test_learned_embeddings_are_reached_through_every_guess():
    """The softmax readout does not read W_Embed, so its gradient is that of z_T through the û_t.

    By hand where no block looks at z: z_T = Π(1 - α_t) z_0 + (1 - Π(1 - α_t)) p W, and the gradient
    is (1 - Π(1 - α_t)) pᵀ ∂L/∂z_T. Fixed embeddings get none.
    """
    method = known(learned=True)
    uneven(method)
    for block in method.unit.blocks:
        nn.init.zeros_(block.get_parameter("slope"))
    x, y = batch()
    method.unit.loss(x, y, rng(8)).total.backward()
    with torch.no_grad():
        z0 = torch.empty(B, D).normal_(generator=rng(8))
        end = by_hand(method, x, z0)[-1]
        readout = method.unit.readout.linear
        error = (end @ readout.weight.T + readout.bias).softmax(1) - F.one_hot(y, M)
        slope = error @ readout.weight / B  # ∂L/∂z_T
        rest = (1 - method.unit.mixing).prod()  # what is left of z_0; all else is û
        expected = (1 - rest) * x.softmax(1).T @ slope
    found = method.embedding.weight.grad
    assert found is not None
    torch.testing.assert_close(found, expected)
    fixed = known()
    fixed.unit.loss(x, y, rng(8)).total.backward()
    assert fixed.embedding.weight.grad is None
    assert not fixed.shared_parameters
