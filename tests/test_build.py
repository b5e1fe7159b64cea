"""From configuration to objects: what depends on what, and nothing else."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from noprop.build import build_embedding, build_method, resolve_auto
from noprop.config import METHODS, RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.errors import ConfigError, DataError
from noprop.layers import ReLUDropout
from noprop.methods.dt import DiscreteNoProp
from noprop.networks import ContinuousBlock
from noprop.recipes import find_recipe
from noprop.task import Task, load_data

TASK = Task((1, 8, 8), tuple("0123456789"), Normalization((0.25,), (2.0,)))


def built(only: str | None = None, /, **changes):
    config = replace(RunConfig(), {"method.num_blocks": 4, **changes})
    method = build_method(config, TASK, build_embedding(config, TASK, None), only=only)
    assert isinstance(method, DiscreteNoProp)
    return method


def states(method) -> dict[str, dict[str, torch.Tensor]]:
    return {unit.name: unit.module.state_dict() for unit in method.units}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_one_block_has_the_memory_of_one():
    """Only block-2 and the readout have weights, the same as in the whole method."""
    method, whole = built("block-2"), built()
    assert [unit.name for unit in method.units] == ["block-2", "readout"]
    one = sum(p.numel() for p in whole.blocks[1].parameters)
    readout = sum(p.numel() for p in whole.readout.parameters)
    assert sum(p.numel() for p in method.parameters()) == one + readout
    assert all(same(state, states(whole)[name]) for name, state in states(method).items())
    assert method.blocks[0].weight == whole.blocks[1].weight
    assert method.blocks[0].gamma == whole.blocks[1].gamma
    assert [unit.name for unit in built("readout").units] == ["readout"]
    with pytest.raises(AssertionError, match="every block"):
        method.prepare(torch.zeros(2, 1, 8, 8))


def test_a_unit_s_start_depends_on_the_seed_and_its_name_alone():
    """Not on the other blocks, nor on the global random state, which stays where it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = states(built())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    more: dict[str, Any] = {"method.num_blocks": 6}
    longer = states(built(**more))
    seed: dict[str, Any] = {"train.seed": 1}
    other = states(built(**seed))
    for name, state in a.items():
        assert same(state, longer[name])
        assert name == "readout" or not same(state, other[name])
    assert not same(a["block-1"], a["block-2"])


@pytest.mark.parametrize(
    ("changes", "passes"), [({}, 4), ({"train.order": "parallel"}, 1)], ids=["sequential", "par"]
)
def test_the_readout_steps_beside_every_block_of_algorithm_1(changes, passes):
    assert built(**changes).readout.passes == passes


def test_units_are_named_in_the_order_of_algorithm_1():
    names = ["block-1", "block-2", "block-3", "block-4", "readout"]
    assert replace(RunConfig(), {"method.num_blocks": 4}).method.unit_names == names
    assert [unit.name for unit in built().units] == names


@pytest.mark.parametrize(
    ("changes", "shape", "learned"),
    [
        ({}, (10, 10), False),
        ({"method.embedding": "orthogonal", "method.learned": True}, (10, 20), True),
        ({"method.embedding": "random", "method.dim": 7}, (10, 7), False),
        ({"method.embedding": "prototype", "method.learned": True}, (10, 64), True),
    ],
)
def test_embeddings_are_as_configured(changes, shape, learned):
    embedding = build_embedding(replace(RunConfig(), changes), TASK, None)
    assert embedding.weight.shape == shape
    assert embedding.learned == learned


def test_prototypes_are_normalised_training_images_of_their_class():
    """The medoid by brute force: least median distance to the others of its class."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (110, 1, 8, 8), generator=g, dtype=torch.uint8)
    y = torch.arange(110) % 10
    config = replace(RunConfig(), {"method.embedding": "prototype"})
    weight = build_embedding(config, TASK, Examples(x, y)).weight
    for label in range(10):
        members = TASK.normalization.apply(x[y == label]).flatten(1).double()
        distances = torch.cdist(members, members)
        others = distances[~torch.eye(11, dtype=torch.bool)].view(11, 10)
        best = others.median(dim=1).values.argmin()
        torch.testing.assert_close(weight[label].double(), members[best])


def test_distances_are_measured_only_where_they_set_the_noise(monkeypatch):
    """Each unit of a run is built again, and 200 prototypes of 64x64 pixels cost 0.4 s."""
    measured = []
    monkeypatch.setattr("noprop.build.greatest_distance", lambda w: measured.append(len(w)) or 2.0)
    for name, noise in (("digits-fm", ""), ("digits-dt", ""), ("digits-ct", 6.0)):
        config = find_recipe(name)
        config = replace(config, {"method.gamma_noise": noise} if noise else {})
        resolve_auto(config, build_embedding(config, TASK, None))
    assert not measured
    config = find_recipe("digits-ct")
    resolve_auto(config, build_embedding(config, TASK, None))
    assert measured == [10]


def test_equal_embeddings_are_refused_by_name():
    """No latent could tell the two classes apart, and every readout's scale would be infinite."""
    line = replace(RunConfig(), {"method.embedding": "orthogonal", "method.dim": 1})
    with pytest.raises(ConfigError, match=r"two classes have the same embedding.* 1 dimension$"):
        build_embedding(line, TASK, None)
    x = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    x[7] = x[3]
    config = replace(RunConfig(), {"method.embedding": "prototype"})
    with pytest.raises(DataError, match="same embedding: the prototypes of 3 and 7 are the same"):
        build_embedding(config, TASK, Examples(x, torch.arange(10)))


def test_the_split_depends_on_the_seed_and_the_test_part_does_not():
    """Validation comes out of training; statistics are those of training alone."""
    a, b = (load_data(replace(RunConfig(), {"train.seed": seed})) for seed in (0, 1))
    assert torch.equal(a.test.x, b.test.x)
    assert not torch.equal(a.validation.x, b.validation.x)
    assert len(a.validation) == round(0.1 * (len(a.train) + len(a.validation)))
    assert a.task.normalization == Normalization.of(a.train.x)
    none = load_data(replace(RunConfig(), {"data.validation": 0.0}))
    assert len(none.validation) == 0


@pytest.mark.parametrize(("kind", "low"), [("unit", 0.0), ("symmetric", -1.0)])
def test_pixels_are_taken_to_the_stated_range(kind, low):
    """0 and 255 become its ends, whatever the training images are."""
    task = load_data(replace(RunConfig(), {"data.normalization": kind})).task
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert task.normalization.apply(ends).flatten().tolist() == pytest.approx([low, 1.0])


def test_features_are_not_taken_for_pixels(tmp_path):
    path = tmp_path / "table.npz"
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(40) % 2)
    config = replace(RunConfig(), {"data.dataset": str(path)})
    load_data(config)
    with pytest.raises(ConfigError, match=r"data\.normalization: unit is for pixels"):
        load_data(replace(config, {"data.normalization": "unit"}))


ORTHOGONAL = {"method.embedding": "orthogonal"}
# Another value of every field, and what must be set as well for the field to count.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "embedding": ("orthogonal", {}),
    "learned": (True, ORTHOGONAL),
    "dim": (12, ORTHOGONAL),
    "readout": ("radial", {}),
    "embedding_norm": (2.0, ORTHOGONAL),
    "readout_start": ("random", {}),
    "sigma": (0.5, {"method.readout": "radial"}),
    "encoder": ("mlp", {}),
    "dropout": (0.5, {}),
    "dropout_kind": ("channel", {}),
    "num_blocks": (3, {}),
    "eta": (0.3, {}),
    "weighting": ("uniform", {}),
    "objective": ("cross-entropy", {}),
    "offset": (0.1, {}),
    "epsilon": (1e-3, {}),
    "gamma_shift": (1.0, {}),
    "steps": (4, {}),
    "schedule": ("cosine", {}),
    "gamma_noise": (8.0, {}),
    "gamma_clean": (-4.0, {}),
    "gamma_room": (1.0, {}),
    "time_scale": (7.0, {}),
    "time_sampling": ("stratified", {}),
    "sampler": ("heun", {}),
    "path_sigma": (0.3, {}),
    "anchor": ("always", {}),
    "tolerance": (1e-1, {"method.sampler": "dopri5"}),
    "evidence": ("exact", {}),
    "network_reads": ("x", {"method.evidence": "exact"}),
    "train_levels": ("noise", {"method.evidence": "exact", "method.network_reads": "x"}),
    "step": ("label", {}),
    "mixing": (0.2, {}),
    "gradient": ("autograd", {}),
    "negatives": ("hybrids", {"method.inference": "softmax"}),
    "num_layers": (2, {}),
    "width": (8, {}),
    "peer_normalization": (0.3, {}),
    "inference": ("softmax", {}),
    "target_step": (0.1, {}),
    "inverse_noise": (0.1, {}),
    "inverse_rate": (1.0, {}),
    "side": (2, {}),
    "groups": (2, {}),
    "classifier_rate": (1.0, {}),
}
SHORT: dict[str, dict[str, Any]] = {
    **{method: {"method.num_blocks": 2} for method in ("dt", "backprop")},
    **{method: {"method.steps": 2} for method in ("ct", "fm", "adjoint")},
    **{method: {"method.num_layers": 3} for method in ("greedy", "dfa")},
    "ff": {"method.width": 30},
    "dtp": {"method.num_layers": 3, "method.width": 12},
    "lg-fg-a": {"method.width": 32, "method.groups": 4},
}


@cache
def doings(method: str, *changes: tuple[str, Any]) -> tuple[float, ...]:
    """Losses, their gradients and a prediction of a method with some settings."""
    short = {"method.name": method, **SHORT[method]}
    config = replace(RunConfig(), {**short, **dict(changes)})
    made = build_method(config, TASK, build_embedding(config, TASK, None))
    x, y = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    found: list[float] = []
    for unit in made.units:
        draws = torch.Generator().manual_seed(1)
        total = unit.loss(made.signals(x, y, draws, unit.phase), y, draws).total
        parameters = [*unit.parameters, *made.shared_parameters]
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        found += [group.get("rate", 1.0) for group in unit.parameter_groups()]
        found += [total.item(), *(g.abs().sum().item() for g in gradients if g is not None)]
    for unit in made.units:
        unit.module.eval()
    p = made.predict(x, torch.Generator().manual_seed(2)).probabilities
    return *found, *p.flatten().tolist()


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, f.name) for m, kind in METHODS.items() for f in dataclasses.fields(kind)
     # greedy and dfa have the encoder's number of layers
     if f.name != "name" and (f.name != "num_layers" or m in ("ff", "dtp"))],
)  # fmt: skip
def test_every_setting_changes_what_the_method_does(method, name):
    """One that is not handed on changes no loss, no gradient and no prediction."""
    value, needs = OTHER[name]
    before = doings(method, *needs.items())
    after = doings(method, *needs.items(), (f"method.{name}", value))
    assert before != after


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_is_a_function_of_its_settings(method):
    """Or the test before this one could not fail."""
    assert doings(method) == doings.__wrapped__(method)


@pytest.mark.parametrize("method", ["ct", "fm", "adjoint"])
def test_the_network_has_the_time_scale_and_dropout_of_its_run(method):
    changes = {"method.name": method, "method.time_scale": 7.0, "method.dropout_kind": "channel"}
    config = replace(RunConfig(), changes)
    (unit,) = build_method(config, TASK, build_embedding(config, TASK, None)).units
    (network,) = [m for m in unit.module.modules() if isinstance(m, ContinuousBlock)]
    assert network.time_scale == 7.0
    assert {m.kind for m in network.modules() if isinstance(m, ReLUDropout)} == {"channel"}


@pytest.mark.parametrize("method", ["dt", "backprop"])
def test_discrete_blocks_have_the_dropout_of_their_run(method):
    """Of a latent that is an image too."""
    changes = {"method.name": method, "method.num_blocks": 1, "method.embedding": "prototype"}
    config = replace(RunConfig(), {**changes, "method.dropout_kind": "channel"})
    method = build_method(config, TASK, build_embedding(config, TASK, None))
    kinds = [m.kind for u in method.units for m in u.module.modules() if isinstance(m, ReLUDropout)]
    assert kinds == ["channel"] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.epsilon": 0.4, "method.num_blocks": 10}, "epsilon=0.4"),
        ({"method.encoder": "conv"}, "14 pixels"),
        ({"method.encoder": "custom"}, "custom"),
    ],
)
def test_what_cannot_be_built_is_a_configuration_error(changes, words):
    with pytest.raises(ConfigError, match=words):
        built(**changes)


def test_the_readout_starts_at_random_with_learned_embeddings():
    """And as the nearest embedding with fixed ones; an explicit value wins."""
    learned = {"method.embedding": "orthogonal", "method.learned": True}
    fixed = {"method.embedding": "orthogonal"}
    found = []
    for changes in (learned, fixed, {}, learned | {"method.readout_start": "nearest"}):
        config = replace(RunConfig(), changes)
        settled = resolve_auto(config, build_embedding(config, TASK, None))
        assert resolve_auto(settled, build_embedding(config, TASK, None)) == settled
        found.append(getattr(settled.method, "readout_start", None))
    assert found == ["random", "nearest", "nearest", "nearest"]


def test_embeddings_take_the_length_of_the_prototypes():
    x = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    train = Examples(x, torch.arange(20) % 10)
    lengths = {}
    for kind in ("prototype", "orthogonal", "random"):
        norm = {} if kind == "prototype" else {"method.embedding_norm": "prototype"}
        changes = {"method.embedding": kind, "method.learned": True, "method.dim": 64} | norm
        if kind == "prototype":
            del changes["method.dim"]
        config = replace(RunConfig(), changes)
        lengths[kind] = build_embedding(config, TASK, train).weight.norm(dim=1).mean().item()
    assert lengths["orthogonal"] == pytest.approx(lengths["prototype"], rel=1e-5)
    # The length of 64 normal numbers over √64: 0.996 ± 0.03 by ten classes, 5 of that.
    assert lengths["random"] == pytest.approx(lengths["prototype"], rel=0.15)


@pytest.mark.parametrize("kind", ["one-hot", "prototype"])
def test_embeddings_with_a_length_of_their_own_take_no_other(kind):
    changes = {"method.embedding": kind, "method.embedding_norm": 2.0}
    with pytest.raises(
        ConfigError, match=rf"embedding_norm: {kind} embeddings have a fixed length"
    ):
        replace(RunConfig(), changes)


def test_a_class_without_an_example_has_no_prototype():
    x = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    train = Examples(x, torch.arange(20) % 9)  # no example of class 9
    config = replace(RunConfig(), {"method.embedding": "prototype", "method.learned": True})
    with pytest.raises(DataError, match="9 has no training example to make a prototype of"):
        build_embedding(config, TASK, train)
