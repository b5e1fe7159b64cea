"""The contract of stacks in training: one forward pass, one group, and phases of an epoch."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError
from noprop.methods.base import Method
from noprop.methods.stack import Stack, with_gradient_of
from noprop.randomness import generator
from noprop.run.units import COUPLED, choose_groups, groups_of
from noprop.training.layout import choose_layout
from noprop.training.plan import Plan, Update
from noprop.training.trainer import Trainer
from tools import IN_PROCESS, NOISE, NOISE_DATA, NOISE_TASK, assert_same, rng, train_run, weights

STACKS = ("greedy", "dfa", "ff", "dtp", "lg-fg-a")
LAYERS = {"method.num_layers": 3}
SMALL: dict[str, dict[str, Any]] = {
    "greedy": LAYERS,
    "dfa": LAYERS,
    "ff": {**LAYERS, "method.width": 30},
    "dtp": {**LAYERS, "method.width": 30},
    "lg-fg-a": {"method.num_blocks": 2, "method.side": 2, "method.width": 24, "method.groups": 4},
}


def config_of(name: str, **changes: Any) -> RunConfig:
    """Two or three layers and two epochs of four mini-batches."""
    small = {**IN_PROCESS, "train.epochs": 2, "train.batch_size": 16}
    return replace(RunConfig(), {"method.name": name, **small, **SMALL[name], **changes})


def built(name: str, **changes: Any) -> tuple[RunConfig, Method]:
    config = config_of(name, **changes)
    return config, build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))


def trainer_of(folder: Path, name: str, **changes: Any) -> Trainer:
    return trainer_for(folder, *built(name, **changes))


def trainer_for(folder: Path, config: RunConfig, method: Method) -> Trainer:
    return Trainer(
        config, method, method.units, NOISE, NOISE.take(torch.arange(8)), NOISE_TASK.normalization,
        bf16=False, folder=folder / "units" / COUPLED, emit=lambda event: None,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["greedy", "dfa", "lg-fg-a"])
def test_no_value_of_a_loss_comes_from_a_layer_above(name):
    """Greedy layers and mixer blocks know nothing of those above; in DFA only the error does.

    By value: other weights above leave a loss below and its gradient as they were, and in DFA every
    output. FF: test_ff.py. The targets of DTP come from above by design.
    """
    _, method = built(name)
    x, y = torch.empty(16, 1, 8, 8).normal_(generator=rng()), torch.arange(16) % 10

    def outputs() -> list[Tensor]:
        read: Any = method.signals(x, y, rng(1))
        if name == "dfa":
            return [h.detach() for h in read.outputs]
        found = []
        for unit in method.units:
            loss = unit.loss(read, y, rng(1)).total
            gradients = torch.autograd.grad(loss, unit.parameters)
            found.append(torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)]))
        return found

    before = outputs()
    with torch.no_grad():
        for p in method.units[2].parameters:
            p.normal_(generator=rng(2))
    after = outputs()
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False]


def test_the_inverses_of_dtp_know_nothing_of_the_output():
    """By value and by gradient, in their phase of an epoch."""
    _, method = built("dtp")
    x, y = torch.empty(16, 1, 8, 8).normal_(generator=rng()), torch.arange(16) % 10
    found = []
    for _ in range(2):
        read: Any = method.signals(x, y, rng(1), 0)
        for unit in [u for u in method.units if u.phase == 0]:
            loss = unit.loss(read, y, rng(1)).total
            found.append([loss.detach(), *torch.autograd.grad(loss, unit.parameters)])
        with torch.no_grad():
            for p in method.units[-1].parameters:
                p.normal_(generator=rng(2))
    half = len(found) // 2
    assert half == 2
    for before, after in zip(found[:half], found[half:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", STACKS[:3])
def test_a_mini_batch_passes_each_layer_once(tmp_path, name):
    """Not once for each unit above it: the cost is linear in the number of layers.

    Forward-Forward has two passes, one of them with the neutral label.
    """
    made = trainer_of(tmp_path, name)
    counts: list[str] = []
    for unit in made.units:
        layer = next(m for m in unit.module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        layer.register_forward_hook(lambda *_, name=unit.name: counts.append(name))
        unit.module.train()
    names = [unit.name for unit in made.units]
    for _ in range(2 * len(names)):
        made.step()
    passes = 2 if name == "ff" else 1
    assert Counter(counts) == dict.fromkeys(names, 2 * passes)
    assert made.plan.begins_mini_batch(made.position)


@pytest.mark.parametrize("name", STACKS)
def test_the_losses_of_a_mini_batch_are_those_before_its_updates(tmp_path, name):
    """All layers descend from the same weights, in whatever order the units are updated.

    Of ``dtp`` the first phase, whose units are the inverses.
    """
    one, other = (trainer_of(tmp_path / n, name, **{"train.optimizer": "sgd"}) for n in "ab")
    for unit in other.units:
        unit.module.train()
    indices = other.indices(other.plan.at(0))
    x = other.gradients._normalized(NOISE.x[indices])
    read = other.method.signals(x, NOISE.y[indices], generator(0, "step", 0, "stack/0"))
    first = [i for i, unit in enumerate(other.units) if unit.phase == 0]
    for i in first:
        draws = generator(0, "step", 0, other.units[i].name)
        other.units[i].loss(read, NOISE.y[indices], draws).total.backward()
    for i in reversed(first):
        other.state.update(i, other.c.lr, 0)
    for unit in one.units:
        unit.module.train()
    for _ in first:
        one.step()
    for a, b in zip(one.method.parameters(), other.method.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_phase_of_each_step_has_signals_and_noise_of_its_own(tmp_path):
    """Also where an epoch has one mini-batch, so that all of its updates have the same number.

    On the validation part no unit is in training mode, whatever its phase.
    """
    config, method = built("greedy", **{"train.batch_size": 64})
    method.units[2].phase = 1
    made, signals = trainer_for(tmp_path, config, method), method.signals
    phases: list[int] = []
    seeds: list[int] = []
    modes: set[bool] = set()

    def recorded(x: Tensor, y: Tensor, draws: torch.Generator, phase: int = 0) -> Any:
        if torch.is_grad_enabled():
            phases.append(phase)
            seeds.append(draws.initial_seed())
        else:
            modes.update(unit.module.training for unit in method.units)
        return signals(x, y, draws, phase)

    method.signals = recorded  # pyright: ignore[reportAttributeAccessIssue]
    made.run()
    assert modes == {False}
    assert phases == [0, 1, 0, 1]
    assert len(set(seeds)) == 4


@pytest.mark.parametrize("name", STACKS)
def test_all_units_are_one_group(name):
    config = config_of(name)
    assert groups_of(config) == [COUPLED]
    assert choose_groups(config, config.method.unit_names) == [COUPLED]
    with pytest.raises(ConfigError, match=f"those of {name} read each other's outputs"):
        choose_groups(config, config.method.unit_names[-1])
    for order in ("sequential", "parallel"):
        for processes in (1, 2, 5):
            layout = choose_layout(replace(config, {"train.order": order}), processes)
            assert (layout.size, layout.shards) == (1, 1)
    with pytest.raises(ConfigError, match=r"train\.shards: .*must be 0 or 1, got 2"):
        replace(config, {"train.shards": 2})


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_the_number_of_workers_changes_no_bit(tmp_path, name):
    """One process trains the stack, and the others have nothing to do."""
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        train_run(folder, config_of(name, **{"train.workers": workers}), NOISE_DATA)
    assert_same(tmp_path / "1", tmp_path / "3")


def test_the_order_of_blocks_changes_nothing(tmp_path):
    for order in ("sequential", "parallel"):
        trainer_of(tmp_path / order, "greedy", **{"train.order": order}).run()
    assert_same(weights(tmp_path / "sequential"), weights(tmp_path / "parallel"))


def test_an_epoch_trains_one_phase_after_the_other():
    """Every mini-batch for the units of phase 0, then every one for those of phase 1."""
    _, method = built("greedy")
    first, second, third = method.units
    second.phase = 1
    plan = Plan(method.units, order="stack", epochs=2, batches=2, shared=False)
    updates = [plan.at(i) for i in range(plan.total)]
    epoch = [(0, 0), (2, 0), (0, 1), (2, 1), (1, 0), (1, 1)]
    assert updates == [Update(e, unit, 0, batch) for e in range(2) for unit, batch in epoch]
    begins = [plan.begins_mini_batch(i) for i in range(6)]
    assert begins == [True, False, True, False, True, True]
    assert first.phase == third.phase == 0


def test_the_rate_of_a_group_multiplies_the_learning_rate(tmp_path):
    """Plain SGD without decay: the step of each parameter is rate · lr · gradient."""
    made = trainer_of(
        tmp_path, "greedy", **{"train.optimizer": "sgd", "train.weight_decay": 0, "train.lr": 0.5}
    )
    unit = made.units[0]
    weight, *rest = unit.parameters
    groups = [{"params": [weight], "rate": 0.1}, {"params": rest}]
    unit.parameter_groups = lambda: groups
    made.state.optimizers[0] = made.state._optimizer(unit)
    before = [p.detach().clone() for p in unit.parameters]
    for p in unit.parameters:
        p.grad = torch.ones_like(p)
    made.state.update(0, 0.5, 0)
    for rate, old, p in zip([0.1, *[1.0] * len(rest)], before, unit.parameters, strict=True):
        torch.testing.assert_close(old - p.detach(), torch.full_like(p, 0.5 * rate))


def test_a_value_with_the_gradient_of_another():
    p = torch.tensor(3.0, requires_grad=True)
    loss = with_gradient_of(p**2, torch.tensor(0.7))
    assert loss.item() == pytest.approx(0.7)
    loss.backward()
    assert p.grad == 6


def test_the_guesses_of_a_stack_are_its_path():
    _, greedy = built("greedy")
    _, dfa = built("dfa")
    assert isinstance(greedy, Stack)
    assert greedy.path_weights is not None
    assert len(greedy.path_weights) == 3
    assert dfa.path_weights is None


@pytest.mark.parametrize("name", STACKS)
def test_the_last_answer_predicts_and_all_are_the_levels_of_the_chain(name):
    """z_0 is 0; then each level is the answer of a step, in order."""
    _, method = built(name)
    for unit in method.units:
        unit.module.eval()
    x = torch.empty(16, 1, 8, 8).normal_(generator=rng())
    p, answers = method.predict(x, rng()), method.prepare(x)
    assert len(answers) == method.num_steps == {"greedy": 3, "ff": 2}.get(name, 1)
    assert torch.equal(p.probabilities, answers[-1])
    assert torch.equal(p.latents, torch.stack([torch.zeros(16, 10), *answers]))
    assert p.path is None or torch.equal(p.path, torch.stack(answers))
    assert len({tuple(a.flatten().tolist()) for a in answers}) == len(answers)
