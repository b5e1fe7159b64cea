"""The suite ``memory``: back-propagation with less memory has the same gradient."""

import json

import pytest
import torch

from noprop.bench.memory import BLOCKS, MODES, accumulate, recompute, text, train
from noprop.bench.settings import Settings
from noprop.build import build_embedding, build_method
from noprop.config import replace
from noprop.methods.backprop import ChainUnit
from noprop.randomness import generator

SETTINGS = Settings(blocks=3)
BATCH = 12


def gradients(change, *, training: bool, dropout: float = 0.0) -> list[torch.Tensor]:
    """Return the gradients of a chain of three blocks, after a change of its unit."""
    torch.manual_seed(0)
    config = replace(SETTINGS.config("backprop"), {"method.dropout": dropout})
    method = build_method(config, SETTINGS.task, build_embedding(config, SETTINGS.task, None))
    (unit,) = method.units
    assert isinstance(unit, ChainUnit)
    change(unit)
    unit.module.train(training)
    draws = generator(0, "test")
    x = torch.randn(BATCH, *SETTINGS.shape, generator=draws)
    y = torch.arange(BATCH) % SETTINGS.classes
    unit.loss(x, y, draws).total.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in unit.module.parameters()]


def test_activation_checkpointing_leaves_the_gradient_as_it_is():
    """In training mode: the second forward pass sees the same mini-batch."""
    plain = gradients(lambda unit: None, training=True)
    torch.testing.assert_close(gradients(recompute, training=True), plain)


def test_both_forward_passes_of_activation_checkpointing_drop_the_same_features(monkeypatch):
    found = gradients(recompute, training=True, dropout=0.5)
    monkeypatch.setattr("noprop.bench.memory.checkpoint", lambda run, z, x, **_: run(z, x))
    torch.testing.assert_close(found, gradients(recompute, training=True, dropout=0.5))


@pytest.mark.parametrize("parts", [2, 5])  # of equal sizes, and not
def test_an_accumulated_gradient_is_that_of_the_whole_mini_batch(parts, monkeypatch):
    """With fixed statistics of batch norm, and every z_0 at its mean."""

    def mean_latent(rows, dim, *_):
        return torch.zeros(rows, dim)

    monkeypatch.setattr("noprop.methods.backprop.initial_latent", mean_latent)
    whole = gradients(lambda unit: None, training=False)
    found = gradients(lambda unit: accumulate(unit, parts), training=False)
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("mode", [m for m in MODES if "checkpointing" in m or "parts" in m])
def test_a_process_trains_in_each_way(mode):
    assert train(mode, 1, "mnist") > 0


def test_a_table_without_times_is_shown():
    """As the results of earlier versions have it."""
    rows = {"dt": {str(n): 100.0 for n in BLOCKS}}
    assert "core-s" not in text({"memory": {"above_imports_mb": rows}})
    times = {"dt": {str(n): 0.25 * n for n in BLOCKS}}
    shown = text(json.loads(json.dumps({"memory": {"above_imports_mb": rows, "seconds": times}})))
    assert "core-s a mini-batch, T = 40" in shown
    assert "10.00" in shown
