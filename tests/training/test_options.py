"""Schedules of the learning rate, averaged weights, clipping: by hand, and as a run resumes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noprop
import tools
from noprop.build import build_embedding, build_method
from noprop.config import METHODS, RunConfig, replace
from noprop.data import balanced_weights
from noprop.errors import ConfigError
from noprop.methods.base import Method
from noprop.run.local import LocalEngine
from noprop.run.resolve import resolve_from
from noprop.run.units import COUPLED
from noprop.run.worker import Job, group_trainer
from noprop.run_settings import TrainConfig
from noprop.tensor_files import load_tensors
from noprop.training import trainer
from noprop.training.events import Epoch, Event, Progress, print_nothing
from noprop.training.optimizers import (
    Optimizer,
    descend,
    follow,
    learning_rate,
    optimizer_state,
    restore_optimizer,
)
from noprop.training.plan import Plan
from noprop.training.trainer import Trainer
from tools import NOISE_DATA, NOISE_TASK, Clock, Killed, assert_same, commit_of, files_of

ALL = {
    "train.schedule": "one-cycle",
    "train.ema": 0.9,
    "train.class_weights": "balanced",
    "train.clip": 0.5,
    "train.crop_padding": 1,
    "train.cutout": 3,
    "train.label_smoothing": 0.1,
    "method.objective": "cross-entropy",
}
FIXED = {**tools.TWO_BLOCKS, **ALL, "train.epochs": 2, "train.batch_size": 16}
LEARNED = {**FIXED, **tools.LEARNED, "method.dim": 12}


# -- the learning rate -----------------------------------------------------------------------------


def rates(schedule: str, n: int = 1000) -> list[float]:
    config = TrainConfig(lr=0.1, schedule=schedule, warmup=0.2)  # pyright: ignore[reportArgumentType]
    return [learning_rate(config, (i + 0.5) / n) for i in range(n)]


def test_a_constant_rate_is_the_paper_s():
    assert set(rates("constant")) == {0.1}


def test_a_cosine_falls_from_the_rate_to_nothing():
    """Half of it in the middle; its mean is half of the rate."""
    found = rates("cosine")
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(0.1, rel=1e-5)
    assert found[-1] == pytest.approx(0, abs=1e-6)
    assert sum(found) / 1000 == pytest.approx(0.05)
    torch_s = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer := torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), T_max=2000
    )
    for i in range(2000):
        if i % 2:  # ours is at the middle of an update
            assert found[i // 2] == pytest.approx(torch_s.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        torch_s.step()


def test_a_constant_rate_falls_linearly_in_the_second_half():
    """In each of E epochs its mean is the one of Hinton's script, (1 + 2 (E - e)) / E."""
    found = rates("constant-linear")
    assert set(found[:500]) == {0.1}
    means = [sum(found[i : i + 100]) / 100 for i in range(500, 1000, 100)]
    assert means == pytest.approx([0.1 * (1 + 2 * (10 - e)) / 10 for e in range(6, 11)])


def test_one_cycle_rises_for_the_warm_up_and_then_falls():
    found = rates("one-cycle")
    assert found[:200] == sorted(found[:200])
    assert found[200:] == sorted(found[200:], reverse=True)
    assert found[100] == pytest.approx(0.05, rel=0.01)
    assert max(found) == pytest.approx(0.1, rel=0.005)
    assert found[600] == pytest.approx(0.05, rel=0.01)
    assert found[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("shared", [True, False])
def test_each_unit_has_the_whole_schedule_whatever_the_order(order, shared):
    """Its updates lie evenly in (0, 1): the last of them has trained with the smallest rate."""
    config = replace(RunConfig(), {**tools.TWO_BLOCKS, "train.order": order})
    units = build_method(
        config, tools.NOISE_TASK, build_embedding(config, tools.NOISE_TASK, None)
    ).units
    plan = Plan(units, order=order, epochs=3, batches=4, shared=shared)
    for index, unit in enumerate(units):
        updates = [plan.at(i) for i in range(plan.total)]
        found = [plan.progress(u) for u in updates if u.unit == index]
        n = 3 * 4 * unit.passes
        assert found == pytest.approx([(i + 0.5) / n for i in range(n)])


# -- one update ------------------------------------------------------------------------------------


def test_an_update_has_the_given_rate_and_no_longer_gradient_than_allowed():
    p = nn.Parameter(torch.zeros(4))
    optimizer = Optimizer(TrainConfig(optimizer="sgd", lr=9.0, weight_decay=0), [{"params": [p]}])
    for clip, norm in ((0.0, 2.0), (3.0, 2.0), (0.5, 0.5)):
        p.data.zero_()
        p.grad = torch.ones(4)
        descend(optimizer, 0.1, clip)
        assert p.detach().norm().item() == pytest.approx(0.1 * norm, rel=1e-5)
        assert p.grad is None


def test_the_norm_that_is_clipped_is_that_of_all_of_a_unit_s_parameters():
    pair = [nn.Parameter(torch.zeros(9)), nn.Parameter(torch.zeros(16))]
    config = TrainConfig(optimizer="sgd", lr=9.0, weight_decay=0)
    optimizer = Optimizer(config, [{"params": pair}])
    for p in pair:
        p.grad = torch.ones_like(p)
    descend(optimizer, 1.0, 1.0)
    torch.testing.assert_close(pair[0].detach(), torch.full((9,), -0.2))
    torch.testing.assert_close(pair[1].detach(), torch.full((16,), -0.2))


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_shared_embeddings_are_clipped_averaged_and_have_the_rate_of_their_mini_batch(
    order, tmp_path, monkeypatch
):
    """W_Embed by hand from what the trainer gave its optimizer: rate, clipped gradient, average."""
    seen: list[tuple[float, float, int, Tensor]] = []

    def spied(optimizer, lr, clip):
        shared = optimizer.parameters
        if any(p is method.embedding.weight for p in shared):
            seen.append((lr, clip, len(seen), shared[0].grad.clone()))
        descend(optimizer, lr, clip)

    fields = {**LEARNED, "train.order": order, "train.optimizer": "sgd", "train.weight_decay": 0}
    fields |= {"train.clip": 1e-3, "train.ema": 0.9, "train.lr": 100.0}  # updates of about 1e-2
    config = replace(RunConfig(), fields)
    monkeypatch.setattr("noprop.training.state.descend", spied)
    job = Job(
        config, NOISE_TASK, tmp_path, "", NOISE_DATA.train, NOISE_DATA.validation,
        build_embedding(config, NOISE_TASK, None).weight.detach(),
    )  # fmt: skip
    made = group_trainer(job, COUPLED, print_nothing)
    method = made.method
    weight = method.embedding.weight.detach().clone()
    average = weight.clone()
    for number in range(2):
        while len(seen) <= number:
            made.step()
        lr, clip, _, gradient = seen[number]
        assert clip == 1e-3
        progress = lr / config.train.lr * config.train.warmup  # as the warm-up is linear
        assert number < progress * made.plan.mini_batches(made.plan.total) < number + 1
        weight -= lr * gradient * min(1, clip / (gradient.norm().item() + 1e-6))
        torch.testing.assert_close(method.embedding.weight.detach(), weight)
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
        torch.testing.assert_close(made.state.shared_average["weight"], average)


def test_the_average_of_a_unit_has_its_statistics_and_follows_every_update(tmp_path):
    """Three updates of a block against the average by hand, of weights and running statistics."""
    config = replace(RunConfig(), {**FIXED, "train.ema": 0.9})
    job = Job(
        config, NOISE_TASK, tmp_path, "", NOISE_DATA.train, NOISE_DATA.validation,
        build_embedding(config, NOISE_TASK, None).weight.detach(),
    )  # fmt: skip
    made = group_trainer(job, "block-1", print_nothing)
    module = made.units[0].module.train()
    state = {n: v for n, v in module.state_dict().items() if v.is_floating_point()}
    assert any("running_var" in name for name in state)
    by_hand = {name: value.clone() for name, value in state.items()}
    for number in range(3):
        made.step()
        decay = (1 + number) / (10 + number)
        for name in by_hand:
            by_hand[name] = decay * by_hand[name] + (1 - decay) * module.state_dict()[name]
    assert made.state.averages[0].keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(made.state.averages[0][name], value)


def test_the_average_follows_weights_and_statistics_and_counts_stay_as_they_are():
    """Weights of the past fall by the decay; in the beginning by less, so that the start goes."""
    module = nn.BatchNorm1d(2)
    average = {n: v.clone() for n, v in module.state_dict().items() if v.is_floating_point()}
    assert "num_batches_tracked" not in average
    by_hand = average["weight"].clone()
    for n in range(40):
        with torch.no_grad():
            module.weight.fill_(float(n))
            assert module.running_var is not None
            module.running_var.fill_(float(n))
        follow(average, module, 0.8, n)
        decay = min(0.8, (1 + n) / (10 + n))
        by_hand = decay * by_hand + (1 - decay) * n
    torch.testing.assert_close(average["weight"], by_hand)
    torch.testing.assert_close(average["running_var"], by_hand)
    assert by_hand[0] == pytest.approx(39 - 0.8 / 0.2, rel=0.01)  # the mean lag of a decay of 0.8


def test_momentum_is_of_sgd_and_rmsprop_and_comes_back_from_a_file():
    """A state without it is that of another optimizer."""
    words = r"train\.momentum: is for train\.optimizer=sgd and rmsprop, got 0\.9 with adamw"
    with pytest.raises(ConfigError, match=words):
        replace(RunConfig(), {"train.momentum": 0.9})
    made = []
    for momentum in (0.9, 0.0):
        config = TrainConfig(optimizer="sgd", momentum=momentum)
        p = nn.Parameter(torch.ones(3))
        optimizer = Optimizer(config, [{"params": [p]}])
        p.grad = torch.ones(3)
        descend(optimizer, 0.1, 0.0)
        made.append((optimizer, optimizer_state(optimizer)))
    (with_it, state), (without, _) = made
    with pytest.raises(ValueError, match="holds momentum_buffer"):
        restore_optimizer(without, state)
    state["0"]["momentum_buffer"] = torch.full((3,), 7.0)
    restore_optimizer(with_it, state)
    assert optimizer_state(with_it)["0"]["momentum_buffer"].tolist() == [7, 7, 7]


# -- as a run --------------------------------------------------------------------------------------


def train(folder: Path, changes: dict[str, Any], **options: Any) -> Path:
    return noprop.train(replace(RunConfig(), changes), folder=folder, **options).folder


@pytest.fixture(scope="module", params=["fixed", "learned"])
def run(request, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    changes = FIXED if request.param == "fixed" else LEARNED
    return changes, train(tmp_path_factory.mktemp(request.param) / "r", changes)


def test_a_resumed_run_has_the_same_bits(run, monkeypatch, tmp_path):
    """Rate, average and augmentation are functions of the update, or lie in the checkpoint."""
    changes, whole = run
    monkeypatch.setattr(trainer, "time", Clock())

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.position == 7:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "r", changes, emit=stop)
    noprop.resume(tmp_path / "r")
    assert_same(whole, tmp_path / "r")


def test_offloaded_blocks_and_processes_that_share_the_blocks_have_the_same_bits(tmp_path):
    whole = train(tmp_path / "whole", LEARNED)
    assert_same(whole, train(tmp_path / "offload", {**LEARNED, "train.offload": True}))
    parallel = {**LEARNED, "train.order": "parallel"}
    one = train(tmp_path / "one", parallel)
    two = train(tmp_path / "two", {**parallel, "train.workers": 2}, engine=LocalEngine())
    assert_same(one, two)


def test_the_averages_predict(run):
    """model.safetensors holds them, and not the last weights, for units and shared embeddings."""
    changes, folder = run
    model = load_tensors(folder / "model.safetensors")[0]
    group = "all" if changes.get("method.learned") else "block-1"
    unit = load_tensors(files_of(folder, group)["block-1"])[0]
    moved = 0
    for name, value in unit.items():
        if "/average/" in name:
            last = name.replace("/average/", "/module/")
            assert torch.equal(model[last], value)
            moved += int(not torch.equal(value, unit[last]))
    assert moved > 10
    if group == "all":
        shared = load_tensors(files_of(folder, group)["shared"])[0]
        assert torch.equal(model["shared/weight"], shared["shared-average/weight"])
        assert not torch.equal(model["shared/weight"], shared["shared/weight"])


def test_the_log_has_the_learning_rate(tmp_path):
    events: list[Event] = []
    train(tmp_path / "r", FIXED, emit=events.append)
    found = [e.lr for e in events if isinstance(e, Epoch) and e.unit == "block-1"]
    n = commit_of(tmp_path / "r", "block-1").total
    config = replace(RunConfig(), FIXED).train
    assert found == [learning_rate(config, (end - 0.5) / n) for end in (n / 2, n)]


def test_balanced_classes_weigh_alike_and_an_example_weighs_1_in_the_mean():
    y = torch.tensor([0] * 6 + [1] * 2 + [3])  # no example of class 2
    weights = balanced_weights(y)
    assert weights.mean().item() == pytest.approx(1)
    assert [weights[y == c].sum().item() for c in (0, 1, 3)] == pytest.approx([3, 3, 3])


def test_class_weights_reach_every_unit_and_change_nothing_where_classes_are_balanced(tmp_path):
    """With as many of each class every weight is 1: the same bits as without."""
    even = dataclasses.replace(tools.NOISE_DATA, train=tools.NOISE.take(torch.arange(70)))
    found = {}
    for part, data in (("even", even), ("odd", tools.NOISE_DATA)):
        for kind in ("none", "balanced"):
            changes = {**tools.TWO_BLOCKS, "train.batch_size": 16, "train.class_weights": kind}
            run = noprop.Run.create(
                replace(RunConfig(), changes), folder=tmp_path / f"{part}-{kind}", data=data
            )
            run.train()
            found[part, kind] = tools.weights(run.folder)
    assert_same(found["even", "none"], found["even", "balanced"])
    changed = {
        name.partition(":")[0].partition("/")[0]
        for name, value in found["odd", "none"].items()
        if not torch.equal(value, found["odd", "balanced"][name])
    }
    assert changed >= {"block-1", "block-2", "readout"}, changed


WEIGHTED = sorted(name for name, cls in METHODS.items() if not cls.unweighted)


def gradients_of(method: Method, y: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    """Losses of a batch and their gradients by unit, with the same noise at every call."""
    found, given = {}, () if weight is None else (weight,)
    x = NOISE_TASK.normalization.apply(tools.NOISE.x[:16])
    for unit in method.units:
        unit.module.eval()  # in training, batch norm ties examples together
    read = method.signals(x, y, tools.rng(3), 0)
    for unit in method.units:
        terms = unit.loss(read, y, tools.rng(4), *given)
        found[unit.name] = terms.total.detach()
        found |= {f"{unit.name}/{n}": v.detach() for n, v in terms.terms.items()}
        reached = [p for p in (*unit.parameters, *method.shared_parameters) if p.requires_grad]
        grads = torch.autograd.grad(terms.total, reached, allow_unused=True)
        found |= {f"{unit.name}/{i}": g for i, g in enumerate(grads) if g is not None}
    return found


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_multiplies_the_loss_of_its_own_example(name):
    """Twice the weights are twice the loss; the label of an example of weight 0 tells nothing."""
    sizes = {
        "dt": {"method.num_blocks": 2},
        "backprop": {"method.num_blocks": 2},
        "adjoint": {"method.steps": 3},
        "greedy": {"method.num_layers": 3},
        "dfa": {"method.num_layers": 3},
        "lg-fg-a": {"method.width": 32, "method.groups": 4},
    }.get(name, {})
    config = replace(RunConfig(), {"method.name": name, **sizes})
    embedding = build_embedding(config, NOISE_TASK, tools.NOISE)
    method = build_method(config, NOISE_TASK, embedding)
    y, ones = tools.NOISE.y[:16], torch.ones(16)
    plain, alike = gradients_of(method, y, None), gradients_of(method, y, ones)
    twice = gradients_of(method, y, 2 * ones)
    assert plain.keys() == alike.keys() == twice.keys()
    for key, value in plain.items():
        torch.testing.assert_close(alike[key], value)
        torch.testing.assert_close(twice[key], 2 * value)
    other, without = y.clone(), ones.clone()
    other[5], without[5] = (y[5] + 1) % 10, 0.0
    one, another = gradients_of(method, y, without), gradients_of(method, other, without)
    for key, value in one.items():
        torch.testing.assert_close(another[key], value)
    assert any(not torch.equal(plain[key], one[key]) for key in plain)


@pytest.mark.parametrize("name", ["dt", "dfa"])
def test_the_trainer_gives_each_example_its_weight(tmp_path, name):
    """A stack's units too: with all weights 2, the first loss is twice that without."""
    changes = {**tools.SMALL, "method.name": name, "train.batch_size": 16}
    changes |= {"method.num_layers": 3} if name == "dfa" else {"method.num_blocks": 1}
    config = resolve_from(replace(RunConfig(), changes), replace(RunConfig(), changes))
    losses = []
    for weights in (None, torch.full((72,), 2.0)):
        method = build_method(config, NOISE_TASK, build_embedding(config, NOISE_TASK, None))
        trainer = Trainer(
            config,
            method,
            method.units,
            tools.NOISE,
            tools.NOISE.take(torch.arange(0)),
            NOISE_TASK.normalization,
            bf16=False,
            folder=tmp_path,
            emit=print_nothing,
            weights=weights,
        )
        losses.append(trainer.step()[1].total.item())
    assert losses[1] == pytest.approx(2 * losses[0])


@pytest.mark.parametrize("name", sorted(METHODS.keys() - set(WEIGHTED)))
def test_class_weights_are_refused_by_methods_without_losses_of_labels(name):
    with pytest.raises(
        ConfigError, match=rf"train.class_weights: is not for method {name}: its layers"
    ):
        replace(RunConfig(), {"method.name": name, "train.class_weights": "balanced"})


def test_label_smoothing_is_for_cross_entropy():
    with pytest.raises(ConfigError, match=r"train.label_smoothing: is for method.objective=cross"):
        replace(RunConfig(), {"train.label_smoothing": 0.1})


def test_warm_up_is_for_one_cycle():
    with pytest.raises(ConfigError, match=r"train.warmup: is for train.schedule=one-cycle, got"):
        replace(RunConfig(), {"train.warmup": 0.5})
    replace(RunConfig(), {"train.warmup": 0.5, "train.schedule": "one-cycle"})


@pytest.mark.parametrize("field", ["cutout", "crop_padding"])
def test_augmentation_must_leave_something_of_every_image(field, tmp_path):
    fields = {**tools.TWO_BLOCKS, f"train.{field}": 8}
    with pytest.raises(ConfigError, match=rf"train.{field}: .* 8 pixels .* wanted at most 7"):
        noprop.train("digits-dt", folder=tmp_path / "r", overrides=fields)
    assert not (tmp_path / "r").exists()
