"""Dropout drawn eight bytes at a time, and the residual path."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noprop.layers import (
    ReLUDropout,
    ResidualPath,
    Sequence,
    channels_last,
    keep_mask,
    weighted_statistics,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("keep", [1, 51, 128, 205, 255])
def test_the_mask_keeps_at_the_stated_rate_in_every_byte(keep):
    """8 byte positions and the whole: beyond 5 sigma with probability < 2e-5 a seed and rate."""
    n, p = 400_000, keep / 256
    mask = keep_mask(torch.empty(n), keep, generator()).float()
    assert abs(mask.mean() - p) < 5 * (p * (1 - p) / n) ** 0.5
    places = mask.view(-1, 8).mean(0)
    assert ((places - p).abs() < 5 * (p * (1 - p) / (n / 8)) ** 0.5).all()


def test_every_byte_takes_every_value_equally_often():
    """Counts from masks at all thresholds; 8 x 256 scores beyond 6: probability < 1e-4 a seed."""
    n = 160_000
    below = torch.stack(
        [keep_mask(torch.empty(n), keep, generator()).view(-1, 8).sum(0) for keep in range(1, 256)]
    )
    ends = torch.zeros(1, 8), torch.full((1, 8), n / 8)
    counts = torch.cat([ends[0], below, ends[1]]).diff(dim=0)
    p = 1 / 256
    assert ((counts - n / 8 * p) / (n / 8 * p * (1 - p)) ** 0.5).abs().max() < 6


def test_neighbouring_bytes_are_independent():
    """Agreement at lags 1 to 9; |score| > 5 in any of 9: probability < 6e-6 a seed."""
    mask = keep_mask(torch.empty(400_000), 128, generator())
    for lag in range(1, 10):
        agree = (mask[lag:] == mask[:-lag]).float().mean()
        assert abs(agree - 0.5) < 5 * 0.5 / len(mask) ** 0.5


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(6, 5, 31, 33),
        torch.empty(6, 5, 31, 33).to(memory_format=torch.channels_last),
        torch.empty(31, 33, 5, 6).permute(3, 2, 0, 1),
        torch.empty(165, 186).T,
    ],
    ids=["contiguous", "channels-last", "permuted", "transposed"],
)
def test_the_rate_does_not_depend_on_the_memory_format(x):
    """|score| > 5 in the whole or in any entry of the first axis: probability < 2e-4 a seed."""
    mask, p = keep_mask(x, 205, generator()), 205 / 256
    assert mask.shape == x.shape
    assert mask.dtype == torch.bool
    assert abs(mask.float().mean() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    rate = mask.flatten(1).float().mean(1)
    assert ((rate - p).abs() < 5 * (p * (1 - p) * len(x) / x.numel()) ** 0.5).all()
    assert torch.equal(keep_mask(x, 205, generator()), mask)


def test_the_mask_is_a_function_of_its_generator():
    x = torch.empty(1001)
    before = torch.get_rng_state()
    assert torch.equal(keep_mask(x, 128, generator(1)), keep_mask(x, 128, generator(1)))
    assert not torch.equal(keep_mask(x, 128, generator(1)), keep_mask(x, 128, generator(2)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
def test_any_number_of_elements(n):
    assert keep_mask(torch.empty(n), 128, generator()).shape == (n,)


@pytest.mark.parametrize("dropout", [0.2, 0.5, 0.9])
def test_the_expectation_of_dropout_is_exact(dropout):
    """Kept with k/256 and scaled by 256/k: product 1 to the last bit, whatever the rounding."""
    layer = ReLUDropout(dropout)
    values = layer(torch.full((1000, 100), 3.0), generator()).unique()
    kept = values.max().item()
    assert values.tolist() == pytest.approx([0, 3 * 256 / layer.keep_of_256])
    assert kept * layer.keep_of_256 / 256 == pytest.approx(3, rel=1e-6)
    assert abs(layer.keep_of_256 / 256 - (1 - dropout)) <= 1 / 512


def test_dropout_of_a_fifth_keeps_205_of_256():
    """|score| > 5 has probability < 6e-7 a seed."""
    n, p = 200_000, 205 / 256
    y = ReLUDropout(0.2)(torch.ones(n, 1), generator())
    assert abs((y > 0).float().mean() - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_in_evaluation_it_is_relu_and_draws_nothing():
    x, source = torch.randn(50, 4, generator=generator()), generator(1)
    before = source.get_state()
    assert torch.equal(ReLUDropout(0.5).eval()(x, source), x.clamp(min=0))
    assert torch.equal(ReLUDropout(0.0)(x, source), x.clamp(min=0))
    assert torch.equal(before, source.get_state())


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(100, 10, generator=generator(), requires_grad=True)
    y = ReLUDropout(0.5)(x, generator(1))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, 2.0 * (y > 0))


@pytest.mark.parametrize("pool", [False, True])
def test_channel_dropout_takes_channels_whole_and_keeps_the_expectation(pool):
    """Kept channels are scaled by 256/k, k/256 of them: |score| > 5 in probability < 6e-7."""
    x = torch.rand(100, 40, 6, 4, generator=generator()) + 0.1
    x = channels_last(x)
    layer = ReLUDropout(0.2, pool=pool, kind="channel")
    y = layer(x, generator(1))
    whole = layer.eval()(x)
    ratio = (y / whole).flatten(2)
    assert torch.equal(ratio[..., 0] == 0, (y == 0).all(dim=(2, 3)))
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert ratio.unique(dim=None).round(decimals=4).unique().tolist() == pytest.approx(
        [0, 256 / 205], abs=1e-4
    )
    p, n = 205 / 256, 100 * 40
    assert abs((ratio[..., 0] > 0).float().mean() - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_of_a_flat_input_channel_dropout_is_that_of_features():
    x = torch.randn(50, 9, generator=generator())
    one, two = (ReLUDropout(0.5, kind=kind)(x, generator(1)) for kind in ("feature", "channel"))
    assert torch.equal(one, two)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5])
def test_a_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\)"):
        ReLUDropout(dropout)


def test_a_sequence_hands_the_generator_on():
    path = Sequence(nn.Linear(5, 100), Sequence(ReLUDropout(0.5)))
    x = torch.randn(20, 5, generator=generator())
    assert torch.equal(path(x, generator(1)), path(x, generator(1)))
    assert not torch.equal(path(x, generator(1)), path(x, generator(2)))


def test_pooling_rounds_down():
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert ReLUDropout(0.0, pool=True)(x).tolist() == [[[[6.0, 8.0], [16.0, 18.0]]]]


def plain(x, keep, pool, source):
    """The layer as one writes it, with the same draws."""
    x = F.relu(F.max_pool2d(x, 2) if pool else x)
    return x * keep_mask(x, keep, source) * (256 / keep)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 3, 8, 10), (3, 16, 7, 9), (2, 1, 2, 2)])
@pytest.mark.parametrize("pool", [False, True])
def test_the_fast_layer_is_the_plain_one_to_the_last_bit(order, dtype, shape, pool):
    """Values and gradients, with ties (values in eighths) and odd sizes; the gradient of another
    memory order, as after a Flatten, too.
    """
    x = (torch.randn(shape, generator=generator()) * 8).round() / 8
    x = x.to(dtype).contiguous(memory_format=order).requires_grad_()
    layer = ReLUDropout(0.2, pool=pool)
    fast, slow = layer(x, generator(1)), plain(x, layer.keep_of_256, pool, generator(1))
    assert torch.equal(fast, slow)
    assert fast.stride() == slow.stride()
    for weight in (torch.randn(fast.shape, generator=generator(2)), torch.randn_like(fast)):
        weight = weight.to(dtype)
        (ours,) = torch.autograd.grad(layer(x, generator(1)), x, weight)
        (theirs,) = torch.autograd.grad(plain(x, layer.keep_of_256, pool, generator(1)), x, weight)
        assert torch.equal(ours, theirs)
        assert ours.stride() == x.stride()  # else batch norm's gradient takes ten times as long


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("pool", [False, True])
def test_what_is_not_finite_is_not_hidden(value, pool):
    """A loss that diverges is found by its NaN: no layer may clear it, whatever its sign."""
    x = torch.randn(2, 3, 4, 4, generator=generator())
    x[1, 2, 3, 1] = value
    y = ReLUDropout(0.0, pool=pool)(x)
    assert (~y.isfinite()).sum() == 1


def test_its_gradient_is_refused_a_second_derivative():
    x = torch.randn(2, 3, 4, 4, generator=generator(), requires_grad=True)
    (first,) = torch.autograd.grad(
        ReLUDropout(0.0, pool=True)(x).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_innermost_even_where_there_is_one(channels):
    """A convolution of one channel then writes its channels innermost, as the next one wants."""
    x = torch.randn(2, channels, 6, 5, generator=generator())
    y = channels_last(x)
    assert torch.equal(x, y)
    assert y.stride() == (30 * channels, 1, 5 * channels, channels)
    conv = nn.Conv2d(channels, 4, 3)
    conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert conv(y).stride() == (48, 1, 12, 4)
    assert channels_last(y).data_ptr() == y.data_ptr()


def test_the_residual_path_is_that_of_the_figure():
    """h + BN(FC(ReLU(BN(FC h)))) in train mode, with batch norm written out."""
    path = ResidualPath(3, 8).double()
    z = torch.randn(16, 3, generator=generator(), dtype=torch.float64)
    linears = [m for m in path.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 3

    def fc_bn(linear, x):
        y = x @ linear.weight.T + linear.bias
        return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()

    h = fc_bn(linears[0], z).clamp(min=0)
    expected = h + fc_bn(linears[2], fc_bn(linears[1], h).clamp(min=0))
    torch.testing.assert_close(path(z), expected)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_weight_counts_as_repetitions_in_batch_norm(kind):
    """Outputs, gradients and kept statistics; the deviation of n - 1 is that of the batch's n."""
    shape = (5, 3) if kind is nn.BatchNorm1d else (5, 3, 2, 2)
    x = torch.randn(shape, generator=generator(), dtype=torch.float32)
    count = torch.tensor([1, 0, 3, 2, 4])
    given, repeated = (kind(3) for _ in range(2))
    for norm in (given, repeated):
        nn.init.normal_(norm.weight, generator=generator(1))
        nn.init.normal_(norm.bias, generator=generator(2))
    weighted = x.clone().requires_grad_()
    with weighted_statistics(nn.Sequential(given), count.float()):
        found = given(weighted)
    assert "forward" not in vars(given)
    copies = x.clone().requires_grad_()
    wanted = repeated(copies.repeat_interleave(count, dim=0))
    torch.testing.assert_close(found.repeat_interleave(count, dim=0), wanted)
    (found.square().flatten(1).sum(dim=1) * found.flatten(1)[:, 0] * count).sum().backward()
    (wanted.square().flatten(1).sum(dim=1) * wanted.flatten(1)[:, 0]).sum().backward()
    torch.testing.assert_close(weighted.grad, copies.grad)
    torch.testing.assert_close(given.running_mean, repeated.running_mean)
    n, places = 10, x[0, 0].numel()
    assert repeated.running_var is not None
    corrected = (repeated.running_var - 0.9) * (n * places - 1) / (n * places)
    torch.testing.assert_close(given.running_var, 0.9 + corrected * (5 * places) / (5 * places - 1))


def test_batch_norm_is_torch_s_for_equal_weights_other_rows_and_evaluation():
    x = torch.randn(6, 3, generator=generator())
    uneven = torch.arange(6.0)
    for rows, weight, training in [
        (x, None, True),
        (x, torch.full((6,), 2.0), True),
        (x[:3], uneven, True),
        (x, uneven, False),
    ]:
        norm, plain = (nn.BatchNorm1d(3).train(training) for _ in range(2))
        with weighted_statistics(norm, weight):
            assert torch.equal(norm(rows), plain(rows))
        torch.testing.assert_close(norm.running_var, plain.running_var, rtol=0, atol=0)
