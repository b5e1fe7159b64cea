"""The evaluation after training is sized to the training, and says what it leaves out."""

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from noprop import api
from noprop.build import resolve_layers
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.evaluate import modes_of
from noprop.methods.base import Method
from noprop.model import empty_model
from noprop.predictions import read_predictions
from noprop.run import extent as extents
from noprop.run.extent import Extent, choose_extent, count_products
from noprop.task import RunData, Task
from noprop.training.events import Evaluated, Evaluating, Event, Started
from tools import IN_PROCESS


def some(n: int) -> Examples:
    g = torch.Generator().manual_seed(n)
    x = torch.randint(256, (n, 1, 8, 8), generator=g, dtype=torch.uint8)
    return Examples(x, torch.arange(n) % 4)


PARTS = some(64), some(48), some(1000)
TASK = Task((1, 8, 8), tuple("abcd"), Normalization.of(PARTS[0].x))
DATA = RunData(TASK, *PARTS)
BASE: dict[str, Any] = {**IN_PROCESS, "method.encoder": "mlp", "method.readout_start": "random"}
CT: dict[str, Any] = {"method.name": "ct", "method.steps": 20, "method.gamma_noise": 6.0}


def configured(**changes: Any) -> RunConfig:
    return replace(RunConfig(), BASE | (changes if "method.name" in changes else CT | changes))


@pytest.mark.parametrize("name", ["dt", "ct", "fm", "backprop", "adjoint"])
@pytest.mark.parametrize("encoder", ["mlp", "small"])
def test_products_are_counted_as_torch_counts_them(name, encoder):
    changes: dict[str, Any] = {"method.name": name, "method.encoder": encoder}
    if name in ("ct", "fm", "adjoint"):
        changes["method.steps"] = 20
    if name == "ct":
        changes = CT | changes
    method = empty_model(configured(**changes), TASK).method
    for unit in method.units:
        unit.module.eval()
    x, draws = torch.rand(3, 1, 8, 8), torch.Generator()
    with count_products() as ours:
        method.predict(x, draws)
    with FlopCounterMode(display=False) as theirs:
        method.predict(x, draws)
    assert ours.total == theirs.get_total_flops() / 2 > 0


METHODS: dict[str, dict[str, Any]] = {
    "dt": {"method.num_blocks": 3},
    "ct": CT,
    "fm": {"method.steps": 20},
    "backprop": {"method.num_blocks": 3},
    "greedy": {},
    "dfa": {},
    "ff": {"method.width": 30},
    "dtp": {"method.num_layers": 3, "method.width": 30},
}


@pytest.mark.parametrize("name", METHODS)
def test_training_costs_what_its_gradients_compute(name):
    """torch's counter sees every product of the forward and the backward passes of a mini-batch.

    With Forward-Forward they are seven passes of the layers: those of positives and negatives
    forward and backward, less the gradient of the image, and one of the neutral label.
    """
    config = replace(RunConfig(), {**IN_PROCESS, "method.name": name, **METHODS[name]})
    config = resolve_layers(config, TASK)
    method, batch = empty_model(config, TASK).method, 60
    x, y, draws = torch.rand(batch, *TASK.shape), torch.arange(batch) % 4, torch.Generator()
    with FlopCounterMode(display=False) as counted:
        for phase in sorted({unit.phase for unit in method.units}):
            signals = method.signals(x, y, draws, phase)
            for unit in method.units:
                if unit.phase == phase:
                    unit.module.eval()
                    for _ in range(unit.passes):
                        unit.loss(signals, y, draws).total.backward(retain_graph=True)
    wanted = counted.get_total_flops() / 2 / batch
    data = RunData(TASK, *PARTS)
    extent = choose_extent(replace(config, {"train.epochs": 7}), data)
    cost = cost_of(config, extent, method)
    # A chain is counted by its first ten steps, with the one readout at its end.
    rel = 1e-4 if config.method.one_network else 1e-6
    assert cost / extent.cost / (7 * len(PARTS[0])) == pytest.approx(wanted, rel=rel)


def cost_of(config: RunConfig, extent: Extent, method: Method) -> float:
    """Return the products of an evaluation, as torch counts those of a hundred more examples."""
    draws, found = torch.Generator(), list[tuple[float, float]]()
    for batch in (100, 200):
        x = torch.rand(batch, *TASK.shape)
        with torch.no_grad(), FlopCounterMode(display=False) as features:
            prepared = method.prepare(x)
        with FlopCounterMode(display=False) as chain:
            method.predict(x, draws, noise=False, prepared=prepared)
        found.append((features.get_total_flops() / 2, chain.get_total_flops() / 2))
    each, one = ((more - few) / 100 for few, more in zip(*found, strict=True))
    samples = config.evaluation.samples if method.has_noise else 1
    mean = method.has_noise and any("mean" in mode for mode in extent.modes)
    cost = extent.examples * (each + (extent.runs * samples + mean) * one)
    return cost + (extent.weights * (each + samples * one))


def test_averages_of_chains_go_first_then_runs_then_examples(monkeypatch):
    """With ever smaller budgets; the budget is kept until the least number of examples is left."""
    left, costs = [], []
    for least in (1e12, 4e10, 1e10, 4e9, 1.0):
        monkeypatch.setattr(extents, "LEAST_COST", least)
        extent = choose_extent(configured(**{"evaluation.budget": 0.0}), DATA)
        left.append((extent.examples, extent.runs, len(extent.modes), set(extent.protocol)))
        costs.append(extent.cost)
    assert costs == sorted(costs, reverse=True)
    assert left[0] == (1000, 5, 6, set())
    assert left[1] == (1000, 5, 3, {"modes"})
    assert left[2] == (1000, 1, 3, {"modes", "runs"})
    assert left[3][1:] == (1, 3, {"modes", "runs", "examples"})
    assert 200 < left[3][0] < 1000
    assert left[4][0] == 200


def test_methods_that_predict_by_chains_keep_them(monkeypatch):
    monkeypatch.setattr(extents, "LEAST_COST", 1.0)
    changes = {"method.name": "dt", "evaluation.budget": 0.0}
    extent = choose_extent(configured(**changes), DATA)
    assert len(extent.modes) == 6
    assert set(extent.protocol) == {"runs", "examples"}


def test_a_longer_training_pays_for_more(monkeypatch):
    monkeypatch.setattr(extents, "LEAST_COST", 1.0)
    costs = [choose_extent(configured(**{"train.epochs": n}), DATA) for n in (1, 100, 10_000)]
    assert [c.protocol.keys() for c in costs][-1] == set()
    assert costs[0].examples < costs[-1].examples
    assert costs[-1].cost < 0.2


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run whose evaluation leaves out all that can be left out, and its events."""
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "LEAST_COST", 1.0)
        model = api.train(
            configured(**{"train.epochs": 1}),
            folder=tmp_path_factory.mktemp("runs") / "run",
            data=DATA,
            emit=events.append,
        )
    return model, events


def test_a_run_says_what_its_evaluation_left_out(small_run):
    model, events = small_run
    results = json.loads((model.folder / "evaluation.json").read_text())
    assert (results["examples"], results["runs"]) == (200, 1)
    assert list(results["modes"]) == ["single", "mean", "mean-path-fitted"]
    assert results["protocol"] == {"examples": 1000, "runs": 5, "modes": list(modes_of(model))}
    assert results["modes"]["single"]["accuracy_se"] is None
    training = results["training"]
    assert training["workers"] == 1
    assert 0 < training["wall_seconds"] < 60
    assert 0 < training["evaluation_seconds"] < 60
    (started,) = (e for e in events if isinstance(e, Started))
    assert started.epochs == 1
    assert started.evaluation is not None
    assert started.evaluation > 0.2


def test_the_answers_of_a_part_are_those_of_its_examples(small_run):
    """Of 200 among 1000 test examples: where each stands, and what the run's model says of it."""
    model, _ = small_run
    stored = read_predictions(model.folder, 10)
    assert stored is not None
    found, part = stored
    assert (len(found), part) == (200, "test")
    assert found.index.unique().numel() == 200
    assert torch.equal(PARTS[2].y[found.index], found.y)
    answers = model.predict(PARTS[2].x[found.index], noise=False)
    torch.testing.assert_close(answers.max(dim=1).values, found.confidence)
    torch.testing.assert_close(answers[torch.arange(200), found.y], found.likelihood)
    assert torch.equal(answers.argmax(dim=1), found.label)


def test_the_share_of_an_evaluation_rises_to_all(small_run):
    _, events = small_run
    shares = [e.share for e in events if isinstance(e, Evaluating)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert len(shares) > 3
    assert isinstance(events[-1], Evaluated)


def test_the_full_protocol_remains(small_run):
    """By ``Model.evaluate`` and by a budget of ``full``, whatever the training was."""
    model, _ = small_run
    api.assemble(model.folder, data=DATA, evaluation="full")
    results = json.loads((model.folder / "evaluation.json").read_text())
    assert (results["examples"], results["runs"]) == (1000, 5)
    assert list(results["modes"]) == list(modes_of(model))
    assert "protocol" not in results


def test_no_evaluation_leaves_a_model_and_no_results(tmp_path):
    events: list[Event] = []
    config = configured(**{"train.epochs": 1, "evaluation.budget": "off"})
    model = api.train(config, folder=tmp_path / "run", data=DATA, emit=events.append)
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert read_predictions(tmp_path / "run", 10) is None
    assert not any(isinstance(e, Evaluating) for e in events)
    weights = model.method.path_weights
    assert weights is not None
    assert weights.unique().numel() == 1
    loaded = api.load(tmp_path / "run")
    assert torch.equal(loaded.predict(PARTS[2].x[:5]), model.predict(PARTS[2].x[:5]))
    with_results = api.assemble(tmp_path / "run", data=DATA, evaluation=0.2)
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert read_predictions(tmp_path / "run", 10) is not None
    assert with_results.method.path_weights is not None
    api.assemble(tmp_path / "run", data=DATA, evaluation="off")
    assert read_predictions(tmp_path / "run", 10) is None
