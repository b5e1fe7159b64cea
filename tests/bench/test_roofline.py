"""Operations and bytes are counted, not guessed: each against a sum by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noprop.bench.rates import copy_rate, product_rate
from noprop.bench.roofline import Work, count
from noprop.bench.settings import Settings
from noprop.bench.training import count_turn


def test_a_product_by_hand():
    a, b = torch.ones(100, 50), torch.ones(50, 20)
    assert count(lambda: a @ b) == Work(2 * 100 * 50 * 20, 4 * (100 * 50 + 50 * 20 + 100 * 20))


X, Y = torch.ones(1000), torch.ones(1000)


@pytest.mark.parametrize(
    ("work", "tensors"),
    [
        (lambda: X.add_(1), 2),  # what is changed in place is read and written
        (lambda: X.add_(Y), 3),
        (lambda: X + Y, 3),
        (lambda: X.zero_(), 1),  # what is overwritten is not read
        (lambda: X.random_(), 1),
        (lambda: X.copy_(Y), 2),
        (lambda: torch.mul(X, Y, out=torch.empty(1000)), 3),
        (lambda: X.view(10, 100).t()[3:], 0),
        (lambda: X.new_empty(1000), 0),
        (lambda: torch.empty(1000), 0),
    ],
)
def test_bytes_are_what_is_read_and_what_is_written(work, tensors):
    assert count(work).bytes == 4000 * tensors


def test_a_fused_step_of_adam_reads_four_and_writes_three():
    """Weights, gradients and two moments; and a number of steps in 4 bytes, three times."""
    weight = torch.ones(1000, requires_grad=True)
    weight.grad = torch.ones(1000)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.step()
    assert count(optimizer.step).bytes == 28_000 + 12


def test_a_convolution_forwards_and_backwards():
    """Its input needs no gradient, so backwards it costs once what it does forwards."""
    conv, x = nn.Conv2d(1, 32, 3, bias=False), torch.randn(4, 1, 28, 28)
    forwards = 2 * 4 * 26 * 26 * 32 * 9
    assert count(lambda: F.conv2d(x, conv.weight)).operations == forwards
    assert count(lambda: conv(x).sum().backward()).operations == 2 * forwards


def test_the_block_of_the_figure():
    """MNIST, trimmed to the pixels that reach an output: sums of Fig. 5's own layers."""
    conv1, conv2, conv3 = 24 * 24 * 32 * 9, 10 * 10 * 64 * 9 * 32, 8 * 8 * 128 * 9 * 64
    first = 2048 * 256
    inner = 10 * 256 + 2 * 256 * 256  # latent path
    head = 2 * 256 * 256 + 256 * 128 + 128 * 10
    # Nothing needs the gradient of x or of the latent.
    passes = 2 * conv1 + 3 * (conv2 + conv3 + first + inner + head) - 10 * 256
    embedding = 2 * 10 * 10  # û = p @ W_Embed, forwards and for p backwards
    block = 2 * 128 * (passes + embedding)
    readout = 2 * 128 * (2 * 10 * 10)
    found = count_turn(Settings(blocks=7), "dt").operations / 7
    assert found == pytest.approx(block + readout, rel=1e-4)


def test_the_bound_is_the_longer_of_the_two():
    assert Work(100, 10).bound(10.0, 10.0) == 10
    assert Work(100, 1000).bound(10.0, 10.0) == 100


def test_the_machine_is_measured():
    assert product_rate(torch.float32, 0.03) > 1e8  # a pocket calculator has less
    assert copy_rate(0.03) > 1e7
