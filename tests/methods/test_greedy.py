"""Greedy layerwise training against a plain loop, and its heads' answers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from noprop.build import build_embedding, build_method, resolve_layers
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.errors import ConfigError
from noprop.methods.greedy import GreedyStack
from noprop.report.describe import describe
from noprop.task import Task
from tools import rng

TASK = Task((1, 28, 28), tuple("0123456789"), Normalization((0.0,), (1.0,)))


def greedy(**changes: Any) -> GreedyStack:
    config = replace(RunConfig(), {"method.name": "greedy", **changes})
    method = build_method(config, TASK, build_embedding(config, TASK, None))
    assert isinstance(method, GreedyStack)
    return method


def test_the_layers_are_those_of_fig_5_with_a_head_each():
    """3×3 convolutions of 32, 64, 128 channels and FC 256 of 2048 features, and linear heads."""
    sizes = [sum(p.numel() for p in unit.parameters) for unit in greedy().units]
    layers = [9 * 32 + 32, 9 * 32 * 64 + 64, 9 * 64 * 128 + 128, 2048 * 256 + 256]
    features = [32 * 12 * 12, 64 * 10 * 10, 128 * 4 * 4, 256]
    assert sizes == [n + 10 * f + 10 for n, f in zip(layers, features, strict=True)]


def test_another_number_of_layers_is_refused():
    with pytest.raises(ConfigError, match=r"method\.num_layers: wanted 4, .* or auto, got 3"):
        greedy(**{"method.num_layers": 3})


def test_the_gradients_are_those_of_layers_trained_apart():
    """Each layer alone on what the one below gave it: the same gradients, without dropout."""
    method = greedy(**{"method.dropout": 0.0})
    x, y = torch.empty(8, 1, 28, 28).normal_(generator=rng()), torch.arange(8)
    read = method.signals(x, y, rng())
    for unit in method.units:
        unit.loss(read, y, rng()).total.backward()
    for unit in method.layers:
        with torch.no_grad():
            above = unit.layer(x)
        loss = F.cross_entropy(unit.head(unit.layer(x).flatten(1)), y)
        for p, wanted in zip(
            unit.parameters, torch.autograd.grad(loss, unit.parameters), strict=True
        ):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, wanted)
        x = above


def test_the_answers_are_the_heads_of_the_outputs_that_training_reads():
    method = greedy(**{"method.dropout": 0.0})
    x, y = torch.empty(8, 1, 28, 28).normal_(generator=rng()), torch.arange(8)
    with torch.no_grad():
        answers, read = method.answers(x), method.signals(x, y, None)
        for unit, p in zip(method.units, answers, strict=True):
            wanted = F.nll_loss(p.log(), y)
            torch.testing.assert_close(unit.loss(read, y, rng()).total, wanted)


@pytest.mark.parametrize(("method", "shape", "layers"), [
    ("dfa", (1, 8, 8), 3), ("dfa", (1, 28, 28), 4), ("greedy", (3, 64, 64), 5), ("dt", (1, 8, 8), 0)
])  # fmt: skip
def test_the_number_of_layers_follows_from_the_data(method, shape, layers):
    """So that a method can be named with any data; a number that was given is kept."""
    task = Task(shape, ("a", "b"), Normalization((0.0,) * shape[0], (1.0,) * shape[0]))
    config = replace(RunConfig(), {"method.name": method})
    found = resolve_layers(config, task)
    assert getattr(found.method, "num_layers", 0) == layers
    assert [n for n in found.method.unit_names if "layer" in n] == [
        f"layer-{n}" for n in range(1, layers + 1)
    ]
    if layers:
        given = replace(config, {"method.num_layers": 2})
        assert resolve_layers(given, task) == given
        about = describe(config, shape, 2)
        assert [u["name"] for u in about["units"]] == found.method.unit_names


def test_an_encoder_that_does_not_suit_the_data_is_refused():
    task = Task((1, 8, 8), ("a", "b"), Normalization((0.0,), (1.0,)))
    config = replace(RunConfig(), {"method.name": "dfa", "method.encoder": "conv"})
    with pytest.raises(ConfigError, match="14 pixels"):
        resolve_layers(config, task)
