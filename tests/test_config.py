"""Configuration: what is written is what is read, and every mistake is named in one line."""

import dataclasses
import difflib
import math
import re
import tomllib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from noprop.chain_settings import DTConfig, FMConfig
from noprop.config import (
    METHODS,
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

FIELDS = [name for name, *_ in fields_of()]
positive = st.floats(1e-300, 1e300)

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.from_regex(r"[A-Za-zü0-9_][A-Za-zü0-9_.-]*", fullmatch=True),
        "data.dataset": st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
        ),
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


POSSIBLE: dict[str, Any] = {
    "method.steps": st.integers(1, 100_000),
    "method.num_blocks": st.integers(1, 10_000),
    "method.eta": positive,
    "method.weighting": st.sampled_from(["uniform", "min-snr"]),
    "method.objective": st.just("cross-entropy"),
    "method.schedule": st.sampled_from(["cosine", "linear"]),
    "method.gamma_noise": st.floats(6.0, 20.0),
    "method.gamma_clean": st.floats(-20.0, -6.0),
    "method.gamma_room": st.floats(0.1, 5.9),
    "method.time_sampling": st.just("stratified"),
    "method.sampler": st.just("heun"),
    "method.path_sigma": st.floats(0, 1e3),
    "method.anchor": st.sampled_from(["always", "never"]),
    "method.tolerance": st.floats(1e-6, 1),
    "method.mixing": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "method.gradient": st.just("autograd"),
    "method.offset": st.floats(1e-6, 0.9),
    "method.epsilon": st.floats(1e-300, 0.49),
    "method.dropout": st.floats(0, 1, exclude_max=True),
    "method.dropout_kind": st.just("channel"),
    "method.time_scale": positive,
    "method.readout": st.just("radial"),
    "method.embedding": st.sampled_from(["orthogonal", "random", "prototype"]),
}


def fields_with(method: str) -> set[str]:
    """The dotted fields of a method."""
    return {f"method.{f.name}" for f in dataclasses.fields(METHODS[method])}


@pytest.mark.parametrize("method", METHODS)
@given(st.data())
def test_toml_brings_back_every_method(tmp_path_factory, method, data):
    """With any of its own fields set, and no field of another in the file."""
    own = {n: data.draw(v, n) for n, v in POSSIBLE.items() if n in fields_with(method)}
    config = replace(RunConfig(), {"method.name": method, **own})
    assert type(config.method) is METHODS[method]
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_bytes(to_toml(config).encode())
    assert from_toml(path) == config
    assert from_mapping(to_mapping(config)) == config
    written = tomllib.loads(path.read_text(encoding="utf-8"))["method"]
    assert {f"method.{n}" for n in written} <= fields_with(method)
    for name, value in own.items():
        assert written[name.removeprefix("method.")] == value


def refusal(name: str, value: Any) -> str | None:
    """What is said of a field's value, in the first method that has the field."""
    owner = methods_with(name.removeprefix("method."))[:1] if name.startswith("method.") else []
    start = replace(RunConfig(), {"method.name": owner[0]} if owner else {})
    try:
        replace(start, {name: value})
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "kind"), [(n, kind) for n, kind, *_ in fields_of()])
def test_every_field_refuses_what_no_computer_can_hold(name, kind):
    """Numbers without end, paths with a NUL or longer than any system takes: of every field."""
    monsters = [10**5000, math.inf, -math.inf, math.nan, "a\0b", "x" * 10_000, ["x"] * 10_000]
    monsters.append(parse_value(name, "9" * 5000))
    if not re.search(r"\bfloat\b", str(kind)):  # 10^30 is no more than a number to training
        monsters += [10**30, -(10**30), 2**63]
    for value in monsters:
        words = refusal(name, value)
        assert words is not None, f"{name} takes {str(value)[:20]}"
        assert words.startswith(f"{name}: ")
        assert words.isprintable()
        assert len(words) < 400


@pytest.mark.parametrize("after", METHODS)
@pytest.mark.parametrize("before", METHODS)
def test_another_method_keeps_what_was_chosen_and_both_have(before, after):
    """What the user set goes along where it can; a default of the one is no choice of the other.

    η is 0.1 in DT and 1 in CT (Table 4): a default carried over would be the wrong method's.
    """
    chosen: dict[str, Any] = {
        "method.dropout": 0.5,
        "method.embedding": "orthogonal",
        "method.learned": True,
        "method.eta": 0.7,
        "method.steps": 77,
        "method.num_blocks": 3,
        "method.sampler": "euler",
        "method.weighting": "uniform",
        "method.mixing": 0.25,
        "method.anchor": "always",
        "method.gradient": "autograd",
    }
    mine = {n: v for n, v in chosen.items() if n in fields_with(before)}
    start = replace(RunConfig(), {"method.name": before, "train.epochs": 7, **mine})
    found = replace(start, {"method.name": after})
    assert found.method.name == after
    assert found.train.epochs == 7
    if after == before:
        assert found == start
        return
    kept = {n: v for n, v in mine.items() if n in fields_with(after)}
    # Euler is FM's own sampler, so for FM it was no choice.
    if before == "fm":
        kept.pop("method.sampler", None)
    assert found == replace(RunConfig(), {"method.name": after, "train.epochs": 7, **kept})
    plain = replace(RunConfig(), {"method.name": before})
    assert replace(plain, {"method.name": after}).method == METHODS[after]()


def test_changing_the_method_and_its_fields_is_one_change():
    """In whatever order they are given, and with a field that only the new method has."""
    for changes in (
        {"method.name": "fm", "method.anchor": "always", "method.dropout": 0.1},
        {"method.dropout": 0.1, "method.anchor": "always", "method.name": "fm"},
    ):
        found = replace(replace(RunConfig(), {"method.num_blocks": 4}), changes).method
        assert isinstance(found, FMConfig)
        assert (found.anchor, found.dropout) == ("always", 0.1)
    with pytest.raises(ConfigError, match="not a field of method fm; it belongs to dt, backprop"):
        replace(RunConfig(), {"method.name": "fm", "method.num_blocks": 4})


def test_a_field_of_another_method_is_answered_with_its_owners():
    """Of every pair: the field, the method at hand, and the methods that have it."""
    for name in (n for n in FIELDS if n.startswith("method.")):
        owners = methods_with(name.removeprefix("method."))
        for method in METHODS:
            if method in owners:
                continue
            with pytest.raises(ConfigError) as caught:
                replace(RunConfig(), {"method.name": method, name: 1})
            wanted = f"{name}: is not a field of method {method}; it belongs to {', '.join(owners)}"
            assert str(caught.value) == wanted


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
    [
        ("epochs", "train.epochs"),
        ("method.lr", "train.lr"),
        ("train.epoch", "train.epochs"),
        ("method.noise", r"method\.gamma_noise or method\.inverse_noise\?"),
    ],
)
def test_a_field_in_the_wrong_table_or_by_one_of_its_words_is_found(wrong, near):
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
        ("data.normalization", "minmax"),
        ("method.dropout_kind", "block"),
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
    ("changes", "words"),
    [
        ({"method.gamma_noise": -6.0}, "by more than twice gamma_room, got -6.0 and -6.0"),
        ({"method.gamma_clean": 0.0}, "by more than twice gamma_room, got 6.0 and 0.0"),
        ({"method.gamma_room": 6.0}, "by more than twice gamma_room, got 6.0 and -6.0"),
        (
            {"method.schedule": "cosine", "method.gamma_noise": -7.0},
            "must exceed gamma_clean, got -7.0 and -6.0",
        ),
        (
            {"method.schedule": "linear", "method.gamma_noise": -6.0},
            "must exceed gamma_clean, got -6.0 and -6.0",
        ),
    ],
)
def test_a_schedule_without_room_for_its_ends_is_refused(changes, words):
    """γ falls from noise to clean, and learned ends may each move by ``gamma_room``."""
    with pytest.raises(ConfigError) as caught:
        replace(RunConfig(), {"method.name": "ct", "method.gamma_noise": 6.0, **changes})
    assert str(caught.value).startswith("method.gamma_noise: must exceed gamma_clean")
    assert str(caught.value).endswith(words)
    own: dict[str, Any] = {"method.name": "ct", "method.gamma_noise": 6.0}
    # A fixed schedule has no ends that move.
    replace(RunConfig(), {**own, "method.schedule": "cosine", "method.gamma_room": 6.0})
    replace(RunConfig(), {**own, "method.gamma_room": 5.99})


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("ct", "method.gamma_room", 0.0),
        ("ct", "method.gamma_noise", math.inf),
        ("ct", "method.steps", 0),
        ("ct", "method.eta", 0.0),
        ("ct", "method.sampler", "dopri5"),
        ("ct", "method.schedule", "sigmoid"),
        ("ct", "method.time_scale", 0.0),
        ("adjoint", "method.time_scale", math.inf),
        ("fm", "method.path_sigma", -0.1),
        ("fm", "method.anchor", "sometimes"),
        ("fm", "method.sampler", "ancestral"),
        ("fm", "method.tolerance", 0.0),
        ("backprop", "method.mixing", 0.0),
        ("backprop", "method.mixing", 1.0),
        ("adjoint", "method.steps", 100_001),
        ("adjoint", "method.gradient", "forward"),
    ],
)
def test_a_value_out_of_a_method_s_range_is_named_with_its_field(method, name, value):
    with pytest.raises(ConfigError) as caught:
        replace(RunConfig(), {"method.name": method, name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert text.endswith(f"got {value!r}")
    assert "\n" not in text


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
        (b"train = ", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
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
