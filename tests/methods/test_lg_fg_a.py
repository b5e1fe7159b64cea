"""LG-FG-A: its estimate against the true local gradient, and its LocalMixer by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noprop.build import build_embedding, build_method
from noprop.config import replace
from noprop.data import Normalization
from noprop.methods.lg_fg_a import (
    ClassifierUnit,
    LocalBlock,
    LocalMixerStack,
    MixerBlock,
    MixerSignals,
    Product,
    forward_gradients,
    head_logits,
    to_patches,
)
from noprop.recipes import RECIPES
from noprop.task import Task
from tools import rng

SIDE, WIDTH, GROUPS, M, B = 2, 12, 3, 4, 5
PATCHES = SIDE**2


@pytest.fixture(autouse=True)
def keeps_global_seed():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def blocks() -> list[LocalBlock]:
    """A first block and a residual one in float64."""
    made = []
    for number, inputs in ((1, 16), (2, WIDTH)):
        block = MixerBlock(PATCHES, inputs, WIDTH, GROUPS, rng(number), first=number == 1)
        unit = LocalBlock(number, block, nn.Linear(WIDTH, M))
        unit.module.double()
        made.append(unit)
    return made


def batch(units: list[LocalBlock], copies: int = 1) -> tuple[MixerSignals, Tensor]:
    """Inputs of both blocks, ``copies`` times."""
    x = torch.randn(B, 1, 8, 8, dtype=torch.float64, generator=rng(7))
    tokens = to_patches(x, SIDE)
    with torch.no_grad():
        second = units[0].block(tokens)
        last = units[1].block(second)
    repeated = [t.repeat(copies, 1, 1) for t in (tokens, second, last)]
    return MixerSignals(repeated), torch.arange(B).repeat(copies) % M


def true_loss(unit: LocalBlock, x: MixerSignals, y: Tensor) -> Tensor:
    inputs = x.states[unit.number - 1]
    return F.cross_entropy(head_logits(unit.head, unit.block(inputs), GROUPS), y)


def built(
    recipe: str, shape: tuple[int, ...], changes: Mapping[str, Any] | None = None
) -> LocalMixerStack:
    config = replace(RECIPES[recipe], changes or {})
    task = Task(shape, tuple("0123456789"), Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, LocalMixerStack)
    return method


@pytest.mark.parametrize("number", [1, 2])
def test_the_mean_of_the_estimate_is_the_true_local_gradient(number):
    """Of all weights, head included. 150 means of 60 draws each; at most 1,100 scores.

    A score of a mean of 150 has Student's distribution, of 149 degrees of freedom: |score| > 5.5 in
    any of 1,100 would fail with probability 2e-4 for a fresh seed. The mean square of the scores
    is near 1 besides, so the estimate is not merely too noisy to be caught.
    """
    units = blocks()
    unit = units[number - 1]
    x, y = batch(units)
    wanted = torch.autograd.grad(true_loss(unit, x, y), unit.parameters)
    many, labels = batch(units, copies=60)
    found = []
    for seed in range(150):
        total = unit.loss(many, labels, rng(seed)).total
        found.append(torch.autograd.grad(total, unit.parameters))
    scores, head = [], {id(p) for p in unit.head.parameters()}
    for p, want, *drawn in zip(unit.parameters, wanted, *found, strict=True):
        got = torch.stack(drawn)
        if id(p) in head:  # it has the true gradient
            torch.testing.assert_close(got[0], want)
            continue
        error = got.std(dim=0) / len(got) ** 0.5
        assert error.max() < want.abs().max()  # there is something to be found
        moves = error > 1e-12  # a bias in front of a norm of one number moves nothing
        scores.append(((got.mean(dim=0) - want) / error)[moves])
    score = torch.cat(scores)
    assert score.abs().max() < 5.5
    assert 0.7 < score.square().mean() < 1.4


@pytest.mark.parametrize(("number", "product"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_a_forward_gradient_is_the_slope_of_the_losses_that_an_activity_changes(number, product):
    """By finite differences: those of its patch, and of its group or, before a mix, of all groups.

    The softmax's mean over patches and groups is held for the others. Where the ReLU is closed the
    estimate is 0.
    """
    units = blocks()
    x, y = batch(units)
    block, head, inputs = units[number - 1].block, units[number - 1].head, x.states[number - 1]
    activities, _ = block.activities(inputs)
    directions = [torch.randn(a.shape, dtype=a.dtype, generator=rng(3)) for a in activities]
    found = forward_gradients(block, head, inputs, y, directions)[product]

    def features(step: float) -> Tensor:
        moved = [step * v for v in directions]
        out = block.activities(inputs, moved)[1].unflatten(2, (GROUPS, -1))
        return F.layer_norm(out, out.shape[-1:])

    still, step = features(0), 1e-6
    n, p, g = 2, 1, 2
    is_mix = (number, product) == (2, 0)
    seen = slice(None) if is_mix else g

    def local_loss(step: float) -> Tensor:
        own = still.clone()
        own[n, p, seen] = features(step)[n, p, seen]
        return F.cross_entropy(head(own.flatten(2).mean(1)), y, reduction="none")[n]

    slope = (local_loss(step) - local_loss(-step)) / (2 * step)
    own = slice(None) if is_mix else slice(g * WIDTH // GROUPS, (g + 1) * WIDTH // GROUPS)
    open_ = activities[product][n, p, own] > 0
    assert open_.any()
    assert not (activities[product] > 0).all()
    assert (found[activities[product] <= 0] == 0).all()
    wanted = slope * directions[product][n, p, own] * open_
    torch.testing.assert_close(found[n, p, own], wanted, rtol=1e-5, atol=1e-9)


def test_groups_reduce_the_noise_of_the_estimate():
    """One direction for all groups would mix their losses: the variance grows with the groups."""
    units = blocks()
    unit, (x, y) = units[0], batch(units)
    directions = [torch.randn(5, PATCHES, WIDTH, dtype=torch.float64, generator=rng(s))
                  for s in (0, 1)]  # fmt: skip
    local = forward_gradients(unit.block, unit.head, x.states[0], y, directions)[-1]
    merged = replace_groups(unit, 1)
    whole = forward_gradients(merged, unit.head, x.states[0], y, directions)[-1]
    assert local.square().mean() < whole.square().mean()


def replace_groups(unit: LocalBlock, groups: int) -> MixerBlock:
    """The same first product, with one group of local losses."""
    block = MixerBlock(PATCHES, 16, WIDTH, groups, rng(1), first=True).double()
    block.products[0].load_state_dict(unit.block.products[0].state_dict())
    with torch.no_grad():  # the grouped product, written as one with blocks on its diagonal
        grouped = unit.block.products[1].get_parameter("weight")
        block.products[1].get_parameter("weight").copy_(torch.block_diag(*grouped)[None])
    return block


def test_patches_are_squares_of_the_image():
    x = torch.arange(2 * 3 * 4 * 4).float().reshape(2, 3, 4, 4)
    found = to_patches(x, 2)
    assert found.shape == (2, 4, 12)
    torch.testing.assert_close(found[1, 1], x[1, :, :2, 2:].flatten())
    torch.testing.assert_close(found[0, 2], x[0, :, 2:, :2].flatten())


@pytest.mark.parametrize("over_patches", [False, True])
def test_a_product_stands_between_two_norms(over_patches):
    """By hand: one product over channels in groups, or over patches, each between two norms."""
    size = PATCHES if over_patches else WIDTH
    groups = 1 if over_patches else GROUPS
    product = Product(size, size, rng(1), groups=groups, over_patches=over_patches).double()
    product.bias.data.normal_(generator=rng(2))
    x = torch.randn(B, PATCHES, WIDTH, dtype=torch.float64, generator=rng(3))
    rows = x.transpose(1, 2) if over_patches else x
    parts = []
    each = size // groups
    for group in range(groups):
        own = slice(group * each, (group + 1) * each)
        h = F.layer_norm(rows[..., own], (each,))
        h = h @ product.weight[group].T + product.bias[own]
        parts.append(F.layer_norm(h, (each,)))
    wanted = torch.cat(parts, dim=2)
    torch.testing.assert_close(product(x), wanted.transpose(1, 2) if over_patches else wanted)


def test_biases_have_no_decay_and_the_classifier_a_rate_of_its_own():
    unit = blocks()[0]
    weights, biases = unit.parameter_groups()
    assert [p.ndim for p in biases["params"]] == [1, 1, 1]
    assert biases["weight_decay"] == 0
    assert "weight_decay" not in weights
    assert {len(weights["params"]) + len(biases["params"])} == {len(unit.parameters)}
    groups = ClassifierUnit(nn.Linear(WIDTH, M), GROUPS, rate=0.3).parameter_groups()
    assert [group["rate"] for group in groups] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("recipe", "shape", "size"),
    [("mnist-lg-fg-a", (1, 28, 28), 429_076), ("cifar10-lg-fg-a", (3, 32, 32), 918_770)],
)
def test_the_networks_of_the_paper_have_their_sizes(recipe, shape, size):
    assert sum(p.numel() for p in built(recipe, shape).parameters()) == size


def test_the_recipe_has_the_rates_of_the_script():
    """But for the learning rate, which no source states for these data."""
    train = RECIPES["mnist-lg-fg-a"].train
    assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (train.schedule, train.batch_size, train.epochs) == ("linear", 100, 200)
    for changes, rate in ({}, 0.1), ({"method.classifier_rate": 0.3}, 0.3):
        classifier = built("digits-lg-fg-a", (1, 8, 8), changes).classifier
        assert [group["rate"] for group in classifier.parameter_groups()] == [rate, rate]


def test_each_block_reads_the_one_below_and_the_classifier_the_last():
    """In training as in a prediction."""
    method = built("digits-lg-fg-a", (1, 8, 8), {"method.num_blocks": 3, "method.side": 2})
    x, y = torch.rand(B, 1, 8, 8, generator=rng()), torch.arange(B)
    read, h = method.signals(x, y, None), to_patches(x, 2)
    with torch.no_grad():
        for unit, inputs in zip(method.blocks, read.states[:-1], strict=True):
            torch.testing.assert_close(inputs, h)
            h = unit.block(h)
        torch.testing.assert_close(read.states[-1], h)
        (p,) = method.answers(x)
        wanted = F.nll_loss(p.log(), y)
    torch.testing.assert_close(method.classifier.loss(read, y, rng()).total, wanted)


def test_a_residual_block_by_hand():
    """Patches, channels, groups; its input is added to the last activity, before the ReLU."""
    block = blocks()[1].block
    mix, channels, groups = (p for p in block.products if isinstance(p, Product))
    x = torch.randn(B, PATCHES, WIDTH, dtype=torch.float64, generator=rng(3))

    def norm(h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, False, keepdim=True) + 1e-5).sqrt()

    h = norm(norm(x.transpose(1, 2)) @ mix.weight[0].T + mix.bias).transpose(1, 2).relu()
    h = norm(norm(h) @ channels.weight[0].T + channels.bias).relu()
    parts = [
        norm(norm(part) @ weight.T + bias)
        for part, weight, bias in zip(
            h.chunk(GROUPS, -1), groups.weight, groups.bias.chunk(GROUPS), strict=True
        )
    ]
    torch.testing.assert_close(block(x), (torch.cat(parts, -1) + x).relu())


def test_every_example_is_moved_in_its_own_direction():
    """One direction for all would leave the mean as it is, with a variance that B does not lower.

    Copies of one example then have the same estimate; with their own directions, all differ.
    """
    unit = blocks()[0]
    tokens = batch(blocks())[0].states[0][:1].expand(6, -1, -1)
    x = MixerSignals([tokens, unit.block(tokens)])
    seen: list[Tensor] = []

    def spied(block, head, inputs, y, directions):
        seen.extend(directions)
        return [torch.zeros_like(v) for v in directions]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noprop.methods.lg_fg_a.forward_gradients", spied)
        unit.loss(x, torch.zeros(6, dtype=torch.int64), rng())
    for v in seen:
        assert len(v.flatten(1).unique(dim=0)) == 6


@pytest.mark.parametrize(
    ("inputs", "groups", "scale"), [(16, 1, 0.1), (10_000, 1, 0.02), (10_000, 4, 0.04)]
)
def test_products_start_from_a_deviation_of_2_over_the_root_of_their_inputs_at_most_a_tenth(
    inputs, groups, scale
):
    """Inputs of one group; 2,000 numbers or more: 8 % is 5 standard errors of a deviation."""
    weight = Product(inputs, 200, rng(), groups=groups).weight
    assert weight.std().item() == pytest.approx(scale, rel=0.08)
    assert weight.mean().abs().item() < 5 * scale / weight.numel() ** 0.5


def test_a_validation_loss_draws_no_directions():
    """It is the loss of training, without the forward gradients that nothing would read."""
    units = blocks()
    x, y = batch(units)
    for unit in units:
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        with torch.no_grad():
            found = unit.loss(x, y, generator).total
        assert torch.equal(generator.get_state(), before)
        torch.testing.assert_close(found, unit.loss(x, y, generator).total.detach())
        assert not torch.equal(generator.get_state(), before)
