"""Configuration: what is written is what is read, and every mistake is named in one line."""

import dataclasses
import difflib
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from noprop.config import (
    RunConfig,
    fields_of,
    from_mapping,
    from_toml,
    methods_with,
    parse_value,
    replace,
    to_mapping,
    to_toml,
)
from noprop.errors import ConfigError
from noprop.method_config import DTConfig

FIELDS = [name for name, *_ in fields_of()]
positive = st.floats(1e-300, 1e300)

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.from_regex(r"[A-Za-zü0-9_][A-Za-zü0-9_.-]*", fullmatch=True),
        "data.dataset": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        "data.image_size": st.none() | st.integers(1, 512),
        "data.validation": st.floats(0, 1, exclude_max=True),
        "method.num_blocks": st.integers(1, 10_000),
        "method.eta": positive,
        "method.embedding": st.sampled_from(["orthogonal", "random"]),
        "method.dim": st.none(),
        "method.epsilon": st.floats(1e-300, 0.49),
        "method.sigma": st.none() | positive,
        "train.lr": positive,
        "train.seed": st.integers(0, 2**63 - 1),
        "train.flip": st.booleans(),
        "evaluation.samples": st.integers(1, 1000),
    },
)


@given(CHANGES)
@example({"data.dataset": 'C:\\data "mine"\n\x7f\r\t#ü'})
def test_toml_brings_back_every_configuration(tmp_path_factory, changes):
    config = replace(RunConfig(), changes)
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_bytes(to_toml(config).encode())
    assert from_toml(path) == config
    assert from_mapping(to_mapping(config)) == config
    for name, value in changes.items():
        found: Any = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value


def test_a_file_gives_only_what_it_changes(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nepochs = 7\n")
    assert from_toml(path) == replace(RunConfig(), {"train.epochs": 7})
    path.write_text("")
    assert from_toml(path) == RunConfig()


def test_auto_workers_are_one_a_core(tmp_path):
    """On the command line, in a file and in Python alike; 0 says the same."""
    path = tmp_path / "c.toml"
    path.write_text('[train]\nworkers = "auto"\n')
    auto = replace(RunConfig(), {"train.workers": parse_value("train.workers", "auto")})
    assert auto == from_toml(path) == replace(RunConfig(), {"train.workers": 0})


def test_every_field_has_a_default_and_a_help_text():
    assert len(set(FIELDS)) == len(FIELDS)
    for name, _, default, text in fields_of():
        assert default is not dataclasses.MISSING, name
        assert text, name
        owner = next(iter(methods_with(name.removeprefix("method."))), "dt")
        config = replace(RunConfig(), {"method.name": owner})
        assert replace(config, {name: default}) == config


@given(st.sampled_from(FIELDS), st.integers(0, 30), st.sampled_from("qxz_"))
def test_an_unknown_field_is_answered_with_one_that_exists(name, at, letter):
    """A letter too many, in replace, on the command line and in a file alike."""
    at = len(name) - at % len(name.rpartition(".")[2])
    wrong = name[:at] + letter + name[at:]
    path, _, last = wrong.rpartition(".")
    mapping = {path: {last: 1}} if path else {last: 1}
    for call in (
        lambda: replace(RunConfig(), {wrong: 1}),
        lambda: parse_value(wrong, "1"),
        lambda: from_mapping(mapping),
    ):
        with pytest.raises(ConfigError, match="unknown field") as caught:
            call()
        nearest = difflib.get_close_matches(wrong, FIELDS, n=1, cutoff=0.4)[0]
        assert str(caught.value) == f"unknown field {wrong}; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("epochs", "train.epochs"), ("method.lr", "train.lr"), ("train.epoch", "train.epochs")],
)
def test_a_field_in_the_wrong_table_is_found(wrong, near):
    with pytest.raises(ConfigError, match=f"unknown field {wrong}; did you mean {near}"):
        parse_value(wrong, "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.epochs", 0),
        ("train.epochs", None),
        ("train.batch_size", 1),
        ("train.lr", 0.0),
        ("train.lr", -1e-3),
        ("train.lr", math.inf),
        ("train.lr", math.nan),
        ("train.lr", "fast"),
        ("train.weight_decay", -1.0),
        ("recipe", "../../evil"),
        ("recipe", "a/b"),
        ("recipe", ".hidden"),
        ("recipe", ""),
        ("train.workers", -1),
        ("train.workers", "all"),
        ("train.seed", -1),
        ("train.seed", 2**63),
        ("train.order", "random"),
        ("train.optimizer", "adagrad"),
        ("train.precision", "float16"),
        ("method.num_blocks", 0),
        ("method.num_blocks", 2.5),
        ("method.eta", 0),
        ("method.eta", math.inf),
        ("method.epsilon", 0.5),
        ("method.offset", 0.0),
        ("method.dropout", 1.0),
        ("method.embedding", "onehot"),
        ("method.readout", "linear"),
        ("method.readout_start", "zero"),
        ("method.sigma", 0.0),
        ("method.sigma", math.inf),
        ("method.dim", 0),
        ("method.name", "nt"),
        ("data.validation", 1.0),
        ("data.image_size", 0),
        ("data.color", "blue"),
        ("evaluation.samples", 0),
    ],
)
def test_a_value_out_of_range_is_named_with_its_field(name, value):
    with pytest.raises(ConfigError) as caught:
        replace(RunConfig(), {name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert text.endswith(f"got {value!r}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.learned": True}, "method.learned.*one-hot"),
        ({"method.dim": 20}, "method.dim.*one-hot"),
        ({"method.embedding": "prototype", "method.dim": 20}, "method.dim.*prototype"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(RunConfig(), changes)
    with pytest.raises(ConfigError, match=r"method\.learned"):
        RunConfig(method=DTConfig(learned=True))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.epochs", "3", 3),
        ("train.lr", "1e-3", 1e-3),
        ("train.flip", "true", True),
        ("train.order", "parallel", "parallel"),
        ("train.order", '"parallel"', "parallel"),
        ("data.dataset", "/some/where/else", "/some/where/else"),
        ("data.image_size", "none", None),
        ("method.sigma", "None", None),
        ("data.dataset", "none", "none"),
        ("data.dataset", "2024", "2024"),
        ("data.dataset", "1e3", "1e3"),
        ("data.dataset", '"2024"', "2024"),
        ("train.flip", "on", True),
        ("train.flip", "off", False),
    ],
)
def test_command_line_values_are_read_as_toml_or_a_bare_word(name, text, value):
    found = parse_value(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train = ", "no TOML"),
        (b"\xff\xfe", "no TOML"),
        (b"[train]\nepochs = 0", r"train\.epochs.*got 0"),
        (b"[train]\nepoch = 1", r"did you mean train\.epochs"),
        (b"train = 3", "train: "),
        (b"[train.epochs]\nx = 1", r"train\.epochs: "),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, content, words):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        from_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            from_toml(path)


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().recipe = "other"  # pyright: ignore[reportAttributeAccessIssue]
