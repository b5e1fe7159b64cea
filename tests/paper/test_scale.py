"""A scale is what it says, and full is the paper's."""

import pytest

from noprop.config import to_mapping
from noprop.errors import ConfigError
from noprop.paper.cells import ALONE, Cell
from noprop.paper.scale import PRESETS, Scale, parse_scale

MNIST = Cell("mnist", "dt", "one-hot")


def test_full_leaves_a_recipe_as_it_is():
    plain = to_mapping(MNIST.recipe)
    full = to_mapping(MNIST.config(Scale(), 0))
    changed = {name.split(".")[1] for name in ALONE}
    assert {k: v for k, v in full["train"].items() if k not in changed} == {
        k: v for k, v in plain["train"].items() if k not in changed
    }
    assert full["method"] == plain["method"]
    assert full["data"] == plain["data"]


def test_a_fraction_of_the_epochs():
    assert MNIST.config(parse_scale("epochs=0.05"), 0).train.epochs == 5
    assert MNIST.config(parse_scale("epochs=1/50"), 0).train.epochs == 2
    ct = Cell("cifar100", "ct", "one-hot").config(parse_scale("epochs=0.01,steps=50"), 0)
    assert (ct.train.epochs, ct.method.steps) == (10, 50)  # pyright: ignore[reportAttributeAccessIssue]


def test_less_than_an_epoch_is_one_on_a_part_of_the_images():
    """A fifth of the adjoint's two epochs on MNIST: one on 0.4 of 54,000."""
    c = Cell("mnist", "adjoint", "one-hot").config(parse_scale("epochs=0.2"), 0)
    assert (c.train.epochs, c.data.train_size) == (1, 21_600)
    smaller = Cell("mnist", "adjoint", "one-hot").config(parse_scale("epochs=0.2,images=1000"), 0)
    assert smaller.data.train_size == 1000
    least = Cell("mnist", "adjoint", "one-hot").config(parse_scale("epochs=1e-6"), 0)
    assert least.data.train_size == least.train.batch_size


@pytest.mark.parametrize(
    "text", ["full", "smoke", "epochs=0.02", "smoke,images=128", "epochs=0.05,steps=20,test=2000"]
)
def test_a_name_is_read_back_as_what_it_names(text):
    scale = parse_scale(text)
    again = parse_scale(scale.name)
    assert again.name == scale.name
    config, other = (MNIST.config(s, 1) for s in (scale, again))
    assert config == other


def test_seeds_are_no_part_of_the_name():
    assert parse_scale("seeds=1").name == "full"
    assert parse_scale("smoke").name != "full"
    assert set(PRESETS) == {"full", "smoke"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiny", "wanted full, smoke"),
        ("epochs=2", "epochs is a fraction in"),
        ("epochs=0", "epochs is a fraction in"),
        ("images=lots", "images wants a whole number, got 'lots'"),
        ("test=0", "test must be at least 1"),
        ("smoke,epoch=0.1", "'epoch=0.1' is none of epochs"),
        ("validation=1", "validation is a fraction in"),
        ("epochs=1/0", "epochs wants a number"),
    ],
)
def test_what_is_no_scale_is_one_line(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_scale(text)
