"""Recipes: valid, buildable, and the paper's where they say so."""

import pytest

from noprop.build import Task, build_embedding, build_method
from noprop.config import from_mapping, from_toml, replace, to_mapping, to_toml
from noprop.data import SOURCES, Normalization
from noprop.errors import ConfigError
from noprop.recipes import RECIPES, find_recipe

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 64, 64), 200),
}


@pytest.mark.parametrize("name", RECIPES)
def test_toml_brings_back_every_recipe(tmp_path, name):
    path = tmp_path / "recipe.toml"
    path.write_bytes(to_toml(RECIPES[name]).encode())
    assert from_toml(path) == RECIPES[name]
    assert from_mapping(to_mapping(RECIPES[name])) == RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_itself_and_builds(name):
    """One block of it: the others have the same layers."""
    config = find_recipe(name)
    assert config.recipe == name
    assert config.data.dataset in (*SOURCES, "digits")
    shape, classes = SHAPES[config.data.dataset]
    channels = (0.5,) * shape[0]
    task = Task(shape, tuple(map(str, range(classes))), Normalization(channels, channels))
    method = build_method(config, task, build_embedding(config, task, None), only="block-1")
    assert [unit.name for unit in method.units] == ["block-1", "readout"]
    assert bool(method.shared_parameters) == config.method.learned


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "digits-dt"])
def test_recipes_of_the_paper_have_its_settings(name):
    """SPEC section 9: T 10, η 0.1, AdamW at 1e-3 and 1e-3, batches of 128, no augmentation."""
    config = RECIPES[name]
    m, t = config.method, config.train
    assert (m.num_blocks, m.eta, m.dropout, m.offset) == (10, 0.1, 0.2, 0.008)
    assert (t.optimizer, t.lr, t.weight_decay, t.batch_size) == ("adamw", 1e-3, 1e-3, 128)
    assert (t.order, t.crop_padding, t.flip) == ("sequential", 0, False)
    assert t.epochs == (100 if "mnist" in name else 150)
    kind = name.partition("-dt")[2]
    assert m.readout == ("radial" if kind == "-radial" else "softmax")
    embeddings = {"-d20": ("orthogonal", True, 20), "-prototype": ("prototype", True, None)}
    assert (m.embedding, m.learned, m.dim) == embeddings.get(kind, ("one-hot", False, None))


@pytest.mark.parametrize(
    ("wrong", "near"), [("digit-dt", "digits-dt"), ("cifar10", "cifar10-dt"), ("mnist_dt", "mnist")]
)
def test_an_unknown_recipe_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(ConfigError, match=f"unknown recipe '{wrong}'; did you mean {near}"):
        find_recipe(wrong)


def test_recipes_can_be_changed_without_changing_them():
    before = to_mapping(RECIPES["digits-dt"])
    assert replace(RECIPES["digits-dt"], {"train.epochs": 1}).train.epochs == 1
    assert to_mapping(RECIPES["digits-dt"]) == before
