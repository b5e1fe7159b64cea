"""Image paths beside that of Fig. 5, a user's own among them, and which is chosen when."""

import pytest
import torch
from torch import nn

from noprop.encoders import (
    Features,
    conv_bn_path,
    conv_path,
    encoder_kind,
    mlp_path,
    small_conv_path,
)
from noprop.layers import ReLUDropout
from noprop.networks import DiscreteBlock
from noprop.randomness import seeded


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_image_too_small_for_the_figure_is_refused():
    with pytest.raises(ValueError, match="at least 14 pixels a side, got 13"):
        conv_path(1, (13, 28), 0.2)
    with pytest.raises(ValueError, match="at least 2 pixels a side, got 1"):
        small_conv_path(1, (1, 8), 0.2)
    with pytest.raises(ValueError, match="conv-bn needs at least 16 pixels a side, got 15"):
        conv_bn_path(1, (15, 28), 0.2)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((13,), "mlp"),
        ((2, 5), "mlp"),
        ((1, 8, 8), "small"),
        ((1, 14, 14), "conv"),
        ((1, 13, 40), "small"),
    ],
)
def test_the_shape_chooses_the_encoder(shape, kind):
    assert encoder_kind(shape) == kind


@pytest.mark.parametrize(("shape", "inner"), [((13,), 256), ((2, 5), 256), ((1, 8, 9), 64 * 4 * 4)])
def test_flat_and_small_inputs(shape, inner):
    assert Features(shape).project.in_features == inner
    block = DiscreteBlock(shape, (3,), 3)
    x, z = torch.randn(4, *shape, generator=generator()), torch.randn(4, 3, generator=generator())
    assert block(z, block.context(x, generator(1)), generator(2)).shape == (4, 3)


def test_the_mlp_path_is_two_layers():
    path = mlp_path(5, 0.2).double().eval()
    x = torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    one, two = (m for m in path if isinstance(m, nn.Linear))
    h = x
    for linear in (one, two):
        h = (linear(h) / (1 + 1e-5) ** 0.5).clamp(min=0)
    torch.testing.assert_close(path(x), h)


def test_the_small_path_is_two_convolutions():
    path = small_conv_path(1, (8, 9), 0.2).double().eval()
    x = torch.randn(2, 1, 8, 9, generator=generator(), dtype=torch.float64)
    one, two = (m for m in path if isinstance(m, nn.Conv2d))
    expected = nn.functional.max_pool2d(two(one(x).relu()).relu(), 2).flatten(1)
    torch.testing.assert_close(path(x), expected)


@pytest.mark.parametrize(
    ("shape", "path"),
    [
        ((1, 8, 8), "auto"),
        ((1, 14, 14), "auto"),
        ((1, 48, 48), "auto"),
        ((1, 16, 16), "conv-bn"),
    ],
)
def test_every_convolution_drops_what_it_is_told_to(shape, path):
    """So many of its numbers, and of the kind."""
    for kind in ("feature", "channel"):
        features = Features(shape, kind=path, dropout=0.3, dropout_kind=kind)
        layers = [m for m in features.modules() if isinstance(m, ReLUDropout)]
        assert {(m.kind, m.keep_of_256) for m in layers} == {(kind, 179)}  # 0.7 of 256
        convolutions = [m for m in features.modules() if isinstance(m, nn.Conv2d)]
        assert len(layers) >= len(convolutions)


@pytest.mark.parametrize("path", ["auto", "conv-bn"])
def test_dropout_follows_the_generator_and_only_in_training(path):
    with seeded(0):
        block = DiscreteBlock((1, 16, 16), (1, 16, 16), 3, encoder=path)
    x, z = (
        torch.randn(4, 1, 16, 16, generator=generator()),
        torch.randn(4, 256, generator=generator()),
    )
    before = torch.get_rng_state()

    def logits(seed):
        return block(z, block.context(x, generator(seed)), generator(seed + 1))

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    block.eval()
    assert torch.equal(logits(1), logits(2))
    assert torch.equal(before, torch.get_rng_state())


def own_encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 40), nn.Dropout(0.5), nn.ReLU())


def test_a_users_encoder_draws_from_the_generator_and_leaves_the_global_state():
    features = Features((2, 3), factory=own_encoder, batch_norm=False)
    x = torch.randn(8, 2, 3, generator=generator())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = features(x, generator(1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(features(x, generator(1)), one)
    assert not torch.equal(features(x, generator(2)), one)
    features.eval()
    assert torch.equal(features(x, generator(1)), features(x, generator(2)))


def test_each_block_has_an_encoder_of_its_own():
    one, two = (DiscreteBlock((2, 3), (3,), 3, factory=own_encoder) for _ in range(2))
    shared = {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}
    assert not shared


def test_counting_a_users_features_leaves_it_in_training():
    features = Features((2, 3), factory=lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6)))
    norm = next(m for m in features.encoder.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.training
    assert norm.num_batches_tracked == 0


class Total(nn.Module):
    """Gives a number a sample, or one for the batch: no features."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, x):
        return x.flatten(self.keep).sum(self.keep)


@pytest.mark.parametrize("keep", [0, 1])
def test_an_encoder_without_features_is_refused(keep):
    with pytest.raises(ValueError, match=r"the encoder must give features \(B, F\), got"):
        Features((2, 3), factory=lambda: Total(keep))


class Answers(nn.Module):
    """Returns a function of x."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: {}["a"], "making the encoder failed: KeyError: 'a'"),
        (lambda: torch.relu, "must be an nn.Module, got builtin_function"),
        (lambda: nn.Linear(7, 2), r"fails on a batch of shape \(2, 2, 3\): RuntimeError: mat1"),
        (lambda: Answers(lambda x: (x, x)), "of real numbers, got tuple"),
        (lambda: Answers(lambda x: x.long()), "of real numbers, got torch.int64"),
        (lambda: Answers(lambda x: x[:, :0]), r"features \(B, F\), got \(2, 0, 3\)"),
    ],
)
def test_what_a_users_code_does_wrong_is_one_line(factory, message):
    with pytest.raises(ValueError, match=message) as caught:
        Features((2, 3), factory=factory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4,), "kind": "custom"}, "needs a function that makes the encoder"),
        ({"shape": (4,), "kind": "conv"}, r"'conv' needs images \(C, H, W\), got .*\(4,\)"),
        ({"shape": (4, 4), "kind": "small"}, r"'small' needs images"),
        ({"shape": (1, 28, 28), "dropout": 1.0}, "dropout must lie in"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    shape = arguments.pop("shape")
    with pytest.raises(ValueError, match=message):
        Features(shape, **arguments)


@pytest.mark.parametrize(("size", "features"), [(28, 256), (32, 1024), (64, 4096)])
def test_the_deep_path_is_five_convolutions_with_batch_norm(size, features):
    path = conv_bn_path(3, (size, size), 0.2).double().eval()
    x = torch.randn(2, 3, size, size, generator=generator(), dtype=torch.float64)
    h = x
    convolutions = [m for m in path if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 64, 128, 128, 256]
    for conv, pool in zip(convolutions, (True, True, False, True, True), strict=True):
        h = (conv(h) / (1 + 1e-5) ** 0.5).relu()
        h = nn.functional.max_pool2d(h, 2) if pool else h
    torch.testing.assert_close(path(x), h.flatten(1))
    assert h[0].numel() == features


def test_the_deep_path_has_about_the_parameters_of_the_figure():
    shape = (3, 32, 32)
    deep, figure = (sum(p.numel() for p in Features(shape, kind=k).parameters())
                    for k in ("conv-bn", "conv"))  # fmt: skip
    assert 0.8 < deep / figure < 1.2
