"""A mini-batch in shards: the gradient of their mean loss, in one process or several."""

import pytest
import torch
from torch import Tensor, nn

import tools
from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.data.batches import augment
from noprop.errors import ConfigError, RunError
from noprop.layers import channels_last, weighted_statistics
from noprop.methods.base import Unit
from noprop.methods.dt import Block
from noprop.randomness import generator
from noprop.task import Task
from noprop.training.gradients import Gradients, flat_gradient
from noprop.training.mesh import ALONE, Mesh, Requests

G = torch.Generator().manual_seed(0)
DATA = Examples(
    torch.randint(256, (40, 1, 8, 8), generator=G, dtype=torch.uint8), torch.arange(40) % 10
)
TASK = Task((1, 8, 8), tuple("0123456789"), Normalization.of(DATA.x))
CHOSEN = torch.arange(3, 26)  # 23: shards of unequal size
LEARNED = {**tools.LEARNED, "method.dim": 6}


class Half(Mesh):
    """One of two processes: it waits for nobody, and keeps what it would have sent."""

    def __init__(self, mine: range):
        self.mine = mine
        self.kept: list[Tensor] = []

    def shards(self, count: int) -> range:
        return self.mine

    def sum_over_shards(self, shards, requests):
        self.kept += shards
        return super().sum_over_shards(shards, requests)


def made(shards: int, name: str, **changes) -> tuple[Gradients, Unit, tuple[nn.Parameter, ...]]:
    settings = {"method.num_blocks": 2, "train.shards": shards, "train.device": "cpu"}
    config = replace(RunConfig(), {**settings, **LEARNED, **changes})
    method = build_method(config, TASK, build_embedding(config, TASK, None))
    (unit,) = [u for u in method.units if u.name == name]
    unit.module.train()
    found = Gradients(config.train, DATA, TASK.normalization, bf16=False, mesh=ALONE)
    return found, unit, method.shared_parameters


def loss_of_shard(unit: Unit, part: Tensor, block: str) -> Tensor:
    x = channels_last(TASK.normalization.apply(DATA.x[part]))
    draws = generator(0, "step", 7, block)
    return unit.loss(x if unit.reads_images else x[:0], DATA.y[part], draws).total


@pytest.mark.parametrize("name", ["block-2", "readout"])
def test_the_gradient_is_that_of_the_weighted_mean_of_the_shards(name):
    """Σ_s (n_s / n) L_s, by autograd in one go; batch-normalised apart, noise of their own."""
    gradients, unit, shared = made(3, name)
    terms, _ = gradients.backward(unit, shared, CHOSEN, 7, Requests())
    other = made(3, name)
    whole = torch.zeros(())
    for number, part in enumerate(CHOSEN.tensor_split(3)):
        whole = whole + len(part) / 23 * loss_of_shard(other[1], part, f"{name}/{number}")
    parameters = [*other[1].parameters, *other[2]]
    wanted = torch.autograd.grad(whole, parameters)
    # Rounding in float32 by the largest: a bias before a batch norm has none but that.
    rounding = 1e-5 * max(float(gradient.abs().max()) for gradient in wanted)
    for p, gradient in zip([*unit.parameters, *shared], wanted, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=rounding)
    torch.testing.assert_close(terms.total, whole.detach())


@pytest.mark.parametrize("shards", [0, 2])
def test_an_example_s_weight_goes_with_it(shards):
    """Weights are those of the mini-batch's examples, whole or in shards, not of the first rows."""
    gradients, unit, shared = made(shards, "block-2")
    gradients.weights = torch.zeros(40).index_fill_(0, CHOSEN[12:], 2.0)  # 0 in the first shard
    terms, _ = gradients.backward(unit, shared, CHOSEN, 7, Requests())
    other, wanted = made(shards, "block-2")[1], torch.zeros(())
    assert isinstance(other, Block)
    for number, part in enumerate(CHOSEN.tensor_split(max(1, shards))):
        x = channels_last(TASK.normalization.apply(DATA.x[part]))
        draws = generator(0, "step", 7, f"block-2/{number}" if shards else "block-2")
        weight = (part >= CHOSEN[12]) * 2.0
        with weighted_statistics(other.module, weight):
            loss = other.loss(x, DATA.y[part], draws, weight).total
        wanted = wanted + len(part) / 23 * loss
    torch.testing.assert_close(terms.total.detach(), wanted.detach())


def test_kept_statistics_are_the_mean_of_the_shards():
    """Each shard's are those after it alone, from what they were before the mini-batch."""
    gradients, unit, shared = made(2, "block-1")
    gradients.backward(unit, shared, CHOSEN, 7, Requests())
    means: dict[str, Tensor] = {}
    for number, part in enumerate(CHOSEN.tensor_split(2)):
        alone = made(2, "block-1")[1]
        loss_of_shard(alone, part, f"block-1/{number}")
        for key, value in alone.module.named_buffers():
            if value.is_floating_point():
                means[key] = means.get(key, 0) + value * (len(part) / 23)
            else:
                means[key] = value
    assert any("running" in key for key in means)
    for key, value in unit.module.named_buffers():
        torch.testing.assert_close(value, means[key])


@pytest.mark.parametrize(
    "change", [{"train.crop_padding": 2}, {"train.flip": True}, {"train.cutout": 4}]
)
def test_every_augmentation_reaches_the_loss(change):
    """That of the images as :func:`augment` makes them, by the generator of the update."""
    gradients, unit, _ = made(1, "block-1", **change)
    terms, _ = gradients.backward(unit, (), CHOSEN, 7, Requests())
    c = gradients.c
    _, same, _ = made(1, "block-1")
    draws = generator(0, "step", 7, "block-1")
    x = augment(DATA.x[CHOSEN], draws, padding=c.crop_padding, flip=c.flip, cutout=c.cutout)
    x = channels_last(TASK.normalization.apply(x))
    assert torch.equal(terms.total, same.loss(x, DATA.y[CHOSEN], draws).total)
    assert not torch.equal(x, channels_last(TASK.normalization.apply(DATA.x[CHOSEN])))


def test_one_shard_is_the_whole_mini_batch():
    """To the last bit, and without the detour."""
    (a, unit, shared), (b, same, as_well) = (made(n, "block-1") for n in (0, 1))
    a.backward(unit, shared, CHOSEN, 7, Requests())
    loss_of_shard(same, CHOSEN, "block-1").backward()
    assert torch.equal(
        flat_gradient([*unit.parameters, *shared]), flat_gradient([*same.parameters, *as_well])
    )
    del b


def test_who_computes_a_shard_changes_no_bit():
    """Two processes' shards put together in their order are those of one."""
    whole, unit, shared = made(4, "block-1")
    whole.mesh = all_of_them = Half(range(4))
    whole.backward(unit, shared, CHOSEN, 7, Requests())
    halves: list[Tensor] = []
    for mine in (range(2), range(2, 4)):
        gradients, unit, shared = made(4, "block-1")
        gradients.mesh = half = Half(mine)
        gradients.backward(unit, shared, CHOSEN, 7, Requests())
        halves += half.kept
    assert len(halves) == 4
    assert all(torch.equal(a, b) for a, b in zip(halves, all_of_them.kept, strict=True))


def test_too_few_examples_for_the_shards_are_said(tmp_path):
    """Three for two shards: one would be left with a single one, which has no statistics."""
    from noprop.run.worker import Job, group_trainer

    config = replace(RunConfig(), {"method.num_blocks": 1, "train.shards": 2})
    weight = build_embedding(config, TASK, None).weight.detach()
    few = DATA.take(torch.arange(3))
    with pytest.raises(ConfigError, match=r"train\.shards: each of 2 .* there are 3 to train on"):
        group_trainer(Job(config, TASK, tmp_path, "", few, few, weight), "block-1", lambda e: None)


def test_processes_that_read_unlike_checkpoints_are_stopped(tmp_path):
    """As where a network file system is behind: the leader has another update than this one."""
    from noprop.run.worker import Job, group_trainer

    class Behind(Mesh):
        def broadcast(self, number: int) -> int:
            return number + 5

    config = replace(RunConfig(), {"method.num_blocks": 1})
    weight = build_embedding(config, TASK, None).weight.detach()
    job = Job(config, TASK, tmp_path, "", DATA, DATA, weight)
    trainer = group_trainer(job, "block-1", lambda e: None, Behind())
    with pytest.raises(RunError, match="is of update 0 here, and of another"):
        trainer.resume()
