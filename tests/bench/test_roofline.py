"""Operations and bytes are counted, not guessed: each against a sum by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noprop.bench.machine import copy_rate, describe_machine, product_rate
from noprop.bench.roofline import Work, count
from noprop.bench.settings import Settings
from noprop.bench.training import count_turn


def test_a_product_by_hand():
    a, b = torch.ones(100, 50), torch.ones(50, 20)
    assert count(lambda: a @ b) == Work(2 * 100 * 50 * 20, 4 * (100 * 50 + 50 * 20 + 100 * 20))


def test_what_is_changed_in_place_is_read_and_written_and_a_view_costs_nothing():
    x = torch.ones(1000)
    assert count(lambda: x.add_(1)).bytes == 8000
    assert count(lambda: x.view(10, 100).t()[3:]).bytes == 0
    assert count(lambda: torch.empty(1000)).bytes == 0


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


def test_the_machine_is_described_and_measured():
    about = describe_machine()
    assert about["cores"] >= 1
    assert about["torch"] == torch.__version__
    assert about["processor"]
    assert product_rate(torch.float32, 0.03) > 1e8  # a pocket calculator has less
    assert copy_rate(0.03) > 1e7
