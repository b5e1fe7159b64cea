"""Difference target propagation: its targets and losses by hand, on linear networks."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noprop.build import build_embedding, build_method
from noprop.config import replace
from noprop.data import Normalization
from noprop.embeddings import Embedding, one_hot_embeddings
from noprop.methods.base import Method
from noprop.methods.dtp import InverseUnit, OutputUnit, TargetLayer, TargetStack, targets
from noprop.recipes import RECIPES
from noprop.task import Task
from noprop.training.optimizers import Optimizer, descend
from noprop.training.plan import Plan
from tools import rng

WIDTH, M, B, L = 6, 3, 4, 3


def linear(inputs: int, outputs: int, seed: int, *, orthogonal: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).double()
    layer.weight.data.normal_(generator=rng(seed))
    if orthogonal:
        nn.init.orthogonal_(layer.weight, generator=rng(seed))
    layer.bias.data.normal_(generator=rng(seed + 100))
    return layer


def exact_inverse(layer: nn.Linear) -> nn.Linear:
    """W⁻¹ (h - b) as a layer."""
    inverse = nn.Linear(WIDTH, WIDTH).double()
    with torch.no_grad():
        inverse.weight.copy_(layer.weight.inverse())
        inverse.bias.copy_(-layer.weight.inverse() @ layer.bias)
    return inverse


def stack(*, orthogonal: bool = False, noise: float = 0.3598) -> TargetStack:
    """A linear network of square layers with exact inverses, in float64."""
    layers = [linear(WIDTH, WIDTH, n, orthogonal=orthogonal) for n in range(1, L + 1)]
    inverses = [InverseUnit(n, exact_inverse(f)) for n, f in enumerate(layers[1:], start=2)]
    units = [TargetLayer(n, f) for n, f in enumerate(layers, start=1)]
    output = OutputUnit(linear(WIDTH, M, 50))
    embedding = Embedding(one_hot_embeddings(M), learned=False)
    return TargetStack(units, output, inverses, embedding, step=0.3, noise=noise)


def built(recipe: str, shape: tuple[int, ...]) -> Method:
    config = RECIPES[recipe]
    task = Task(shape, tuple("0123456789"), Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    return build_method(config, task, build_embedding(config, task, None))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, WIDTH, dtype=torch.float64, generator=rng(9)), torch.tensor([0, 2, 1, 1])


@pytest.fixture(autouse=True)
def keeps_global_seed():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def outputs_of(method: TargetStack, x: Tensor) -> list[Tensor]:
    found = []
    for unit in method.layers:
        found.append(x := unit.layer(x))
    return found


def test_the_targets_of_a_linear_network_are_the_closed_form():
    r"""$\hat h_l = h_l - \eta W_{l+1}^{-1} \cdots W_L^{-1} \partial NLL / \partial h_L$."""
    method, (x, y) = stack(), batch()
    h = outputs_of(method, x)
    top = h[-1].detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(method.output.layer(top), y), top)
    move = 0.3 * slope
    wanted = []
    for unit in reversed(method.layers):
        wanted.append(h[unit.number - 1] - move)
        move = move @ unit.layer.weight.inverse().T  # pyright: ignore
    read = method.signals(x, y, rng(), 1)
    for got, want in zip(read.wanted, reversed(wanted), strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-7)


def test_in_an_orthogonal_linear_network_the_gradient_is_that_of_backpropagation():
    r"""$W^{-1} = W^T$: the targets move along the true gradient, times 2η / B in the loss."""
    method, (x, y) = stack(orthogonal=True), batch()
    read = method.signals(x, y, rng(), 1)
    loss = F.cross_entropy(method.output.layer(outputs_of(method, x)[-1]), y)
    for unit in method.layers:
        found = torch.autograd.grad(unit.loss(read, y, rng()).total, unit.parameters)
        wanted = torch.autograd.grad(loss, unit.parameters, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, 2 * 0.3 / B * b, rtol=1e-3, atol=1e-7)


def test_the_difference_cancels_what_an_inverse_does_not_invert():
    """With targets that are the outputs, every target is, however wrong the inverses are."""
    outputs = [torch.randn(B, WIDTH, generator=rng(n)) for n in range(L)]
    wrong = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(L - 1)]
    with torch.no_grad():
        found = targets(outputs, outputs[-1], wrong)
    for a, b in zip(found, outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_output_has_its_true_gradient():
    method, (x, y) = stack(), batch()
    read = method.signals(x, y, rng(), 1)
    found = torch.autograd.grad(method.output.loss(read, y, rng()).total, method.output.parameters)
    loss = F.cross_entropy(method.output.layer(outputs_of(method, x)[-1].detach()), y)
    wanted = torch.autograd.grad(loss, method.output.parameters)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_inverse_reconstructs_the_noisy_input_of_its_layer():
    """Of h + ε itself, not of h; ε has the stated deviation, fresh for every layer.

    |score| > 5 of the variance of 120,000 draws: a fresh seed would fail with probability 6e-7.
    """
    method = stack(noise=0.5)
    x, y = torch.randn(10_000, WIDTH, dtype=torch.float64, generator=rng(1)), torch.zeros(10_000)
    read = method.signals(x, y.long(), rng(2), 0)
    h = outputs_of(method, x)
    noise = [a - b for a, b in zip(read.inputs, h[:-1], strict=True)]
    drawn = torch.cat([n.flatten() for n in noise]).detach()
    score = (drawn.square().mean() / 0.25 - 1) / (2 / len(drawn)) ** 0.5
    assert score.abs() < 5
    assert abs((noise[0] * noise[1]).mean() / 0.25) < 5 / noise[0].numel() ** 0.5
    for unit in method.inverses:
        layer = method.layers[unit.number - 1].layer
        i = unit.number - 2
        torch.testing.assert_close(read.wanted[i], layer(read.inputs[i]).detach())
        assert unit.loss(read, y.long(), rng()).total < 1e-8  # they are exact
        unit.inverse.bias.data += 1  # pyright: ignore
        total = unit.loss(read, y.long(), rng()).total
        torch.testing.assert_close(total.double(), torch.tensor(float(WIDTH)).double())


def test_in_bf16_targets_and_losses_are_those_of_float32():
    """To the last bit: most targets would equal their outputs."""
    method, (x, y) = stack(), batch()
    for unit in method.units:
        unit.module.float()
    found = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for unit in method.units:
                read = method.signals(x.float(), y, rng(), unit.phase)
                found.append([*read.wanted, unit.loss(read, y, rng()).total])
    for plain, other in zip(found[: len(method.units)], found[len(method.units) :], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_the_recipe_has_the_rates_of_the_authors_script():
    """Of the layers and of the inverses, the step of the target, and the noise."""
    train, method = RECIPES["mnist-dtp"].train, built("mnist-dtp", (1, 28, 28))
    assert (train.optimizer, train.momentum, train.batch_size) == ("rmsprop", 0.9, 100)
    assert (train.lr, train.schedule, train.weight_decay) == (0.01489, "constant", 0.0)
    assert isinstance(method, TargetStack)
    assert (method.step, method.noise) == (0.3277, 0.3598)
    for unit in method.units:
        (group,) = unit.parameter_groups()
        wanted = 0.00501 if unit in method.inverses else 0.01489
        assert train.lr * group.get("rate", 1.0) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "shape", "forward", "inverse"),
    [
        ("mnist-dtp", (1, 28, 28), 537_850, 347_040),
        ("cifar10-dtp", (3, 32, 32), 5_085_010, 2_002_000),
    ],
)
def test_the_networks_of_the_paper_have_their_sizes(recipe, shape, forward, inverse):
    """Weights are orthogonal, each drawn separately, and biases 0."""
    method = built(recipe, shape)
    assert isinstance(method, TargetStack)
    sizes = {u.name: sum(p.numel() for p in u.parameters) for u in method.units}
    assert sum(n for name, n in sizes.items() if "inverse" not in name) == forward
    assert sum(n for name, n in sizes.items() if "inverse" in name) == inverse
    linear = [m for u in method.units for m in u.module.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == len(method.units)
    for layer in linear:
        w = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        torch.testing.assert_close(w @ w.T, torch.eye(len(w)), rtol=1e-4, atol=1e-4)
        assert layer.bias.count_nonzero() == 0
    for a, b in combinations(linear, 2):
        assert not torch.equal(a.weight, b.weight)


def test_an_epoch_trains_the_inverses_and_then_the_layers():
    method = built("mnist-dtp", (1, 28, 28))
    plan = Plan(method.units, order="stack", epochs=1, batches=2, shared=False)
    names = [method.units[plan.at(n).unit].name for n in range(plan.total)]
    inverses = [f"inverse-{n}" for n in range(2, 8)]
    layers = [*(f"layer-{n}" for n in range(1, 8)), "output"]
    assert names == 2 * inverses + 2 * layers


def test_rmsprop_is_centred_with_momentum():
    r"""Two updates by hand: $v = 0.9 v + g / (\sqrt{E[g^2] - E[g]^2} + \epsilon)$."""
    config = replace(RECIPES["mnist-dtp"], {"train.lr": 0.1})
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Optimizer(config.train, [{"params": [p]}])
    mean = square = velocity = torch.zeros(2)
    wanted = p.detach().clone()
    for gradient in (torch.tensor([1.0, 0.5]), torch.tensor([-0.3, 2.0])):
        p.grad = gradient.clone()
        descend(optimizer, 0.1, 0.0)
        mean = 0.95 * mean + 0.05 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        velocity = 0.9 * velocity + gradient / ((square - mean**2).sqrt() + 1e-3**0.5)
        wanted = wanted - 0.1 * velocity
        torch.testing.assert_close(p.detach(), wanted)
