"""The configuration of a run: frozen, validated dataclasses, and conversion to and from TOML.

Components do not use configurations; ``build.py`` and ``builders.py`` turn these into objects.
Defaults are the paper's values. The text of every field is also its help on the command line. This
module does not import torch.
"""

import dataclasses
import difflib
import functools
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from noprop.chain_settings import AdjointConfig, BackpropConfig, CTConfig, DTConfig, FMConfig
from noprop.errors import ConfigError
from noprop.files import open_regular
from noprop.run_settings import DataConfig, EvaluationConfig, TrainConfig
from noprop.settings import NO_OTHER_FIELDS, option
from noprop.stack_settings import DFAConfig, DTPConfig, FFConfig, GreedyConfig, LocalMixerConfig

__all__ = [
    "METHODS",
    "AnyMethod",
    "RunConfig",
    "fields_of",
    "from_mapping",
    "from_toml",
    "inference_fields",
    "methods_with",
    "parse_value",
    "replace",
    "to_mapping",
    "to_toml",
]

MAX_FILE_BYTES = 2**14  # greatest size of a configuration file

AnyMethod = (
    DTConfig
    | CTConfig
    | FMConfig
    | BackpropConfig
    | AdjointConfig
    | GreedyConfig
    | DFAConfig
    | FFConfig
    | DTPConfig
    | LocalMixerConfig
)
METHODS = {cls.name: cls for cls in typing.get_args(AnyMethod)}


# -- a run --------------------------------------------------------------------------------------


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class RunConfig:
    """Everything that a run depends on."""

    # It becomes the name of a folder, and must not lead out of the parent folder.
    recipe: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)] = option(
        "custom", "name of the recipe"
    )
    data: DataConfig = field(default_factory=DataConfig)
    method: Annotated[AnyMethod, Field(discriminator="name")] = field(default_factory=DTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.train.batch_size < 2 * self.train.shards:
            raise ConfigError(
                f"train.shards: each of {self.train.shards} needs at least two examples, but "
                f"train.batch_size is {self.train.batch_size}"
            )
        if self.train.momentum and self.train.optimizer not in ("sgd", "rmsprop"):
            raise ConfigError(
                f"train.momentum: is for train.optimizer=sgd and rmsprop, got "
                f"{self.train.momentum} with {self.train.optimizer}"
            )
        if self.train.label_smoothing:
            self._check_label_smoothing()
        if self.train.warmup != TrainConfig.warmup and self.train.schedule != "one-cycle":
            raise ConfigError(
                f"train.warmup: is for train.schedule=one-cycle, got {self.train.warmup} with "
                f"{self.train.schedule}"
            )
        if self.train.patience:
            self._check_patience()
        if self.train.class_weights != "none" and (why := self.method.unweighted):
            raise ConfigError(
                f"train.class_weights: is not for method {self.method.name}: {why}; use none, got "
                f"{self.train.class_weights}"
            )
        if self.method.stack and self.train.shards > 1:
            raise ConfigError(
                f"train.shards: {self.method.name} trains on whole mini-batches, so it must be 0 "
                f"or 1, got {self.train.shards}"
            )
        blocks_wait = self.method.learned and len(self.method.unit_costs) > 1
        if self.train.offload and self.train.order == "parallel" and blocks_wait:
            raise ConfigError(
                "train.offload: with method.learned and train.order=parallel every mini-batch "
                "needs every block, so blocks cannot be offloaded; use train.order=sequential"
            )

    def _check_label_smoothing(self) -> None:
        method, smoothing = self.method, self.train.label_smoothing
        if (objective := getattr(method, "objective", None)) != "cross-entropy":
            own = f"with {objective}" if objective else f"for {method.name}, which has no objective"
            raise ConfigError(
                f"train.label_smoothing: is for method.objective=cross-entropy, got {smoothing} "
                f"{own}"
            )
        # Where the latent decides the label, a smoothed target is wrong, and the network would have
        # to outweigh the exact term.
        exact = getattr(method, "evidence", "learned") == "exact"
        if exact and getattr(method, "train_levels", "all") != "noise":
            raise ConfigError(
                "train.label_smoothing: with method.evidence=exact it needs "
                f"method.train_levels=noise, got {smoothing} with all levels"
            )

    def _check_patience(self) -> None:
        if not self.data.validation:
            raise ConfigError(
                f"train.patience: needs a validation part, got {self.train.patience} with "
                "data.validation=0"
            )
        if self.train.offload and self.method.learned:
            raise ConfigError(
                "train.patience: needs all units in memory where they share embeddings, got "
                f"{self.train.patience} with train.offload and method.learned"
            )


# -- fields by dotted name ----------------------------------------------------------------------


def fields_of(cls: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the dotted name, type, default and help of every field; each method field once."""
    for f in dataclasses.fields(cls):
        if f.name == "method":
            yield from _method_fields()
        elif dataclasses.is_dataclass(f.type):
            yield from fields_of(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f.type, f.default, f.metadata.get("help", "")


def _method_fields() -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the fields of all methods, ``name`` first; a help text names the methods if not all."""
    yield "method.name", Literal[*METHODS], "dt", "training method (docs/methods.md)"
    seen = {"name"}
    for cls in METHODS.values():
        for f in dataclasses.fields(cls):
            if f.name not in seen:
                seen.add(f.name)
                owners = methods_with(f.name)
                some = f"{', '.join(owners)}: " if len(owners) < len(METHODS) else ""
                text = some + f.metadata.get("help", "")
                yield f"method.{f.name}", _type_of(f.name, owners), f.default, text


def _type_of(name: str, methods: list[str]) -> Any:
    """Return the type of a field of several methods; of words, those of any of the methods."""
    kinds = [f.type for m in methods for f in dataclasses.fields(METHODS[m]) if f.name == name]
    if not all(typing.get_origin(kind) is Literal for kind in kinds):
        return kinds[0]
    return Literal[*dict.fromkeys(word for kind in kinds for word in typing.get_args(kind))]


@functools.cache
def _field_names() -> list[str]:
    """Return the dotted names of all fields, which each of the recipes asks for as it is built."""
    return [name for name, *_ in fields_of()]


def methods_with(name: str) -> list[str]:
    """Return the names of the methods that have a field."""
    return [m for m, cls in METHODS.items() if name in {f.name for f in dataclasses.fields(cls)}]


def inference_fields(config: RunConfig) -> list[str]:
    """Return the fields that change no weight, only what a trained method predicts."""
    own = [f.name for f in dataclasses.fields(config.method) if f.metadata["inference"]]
    read = [f.name for f in dataclasses.fields(config.evaluation)]
    return [f"method.{name}" for name in own] + [f"evaluation.{name}" for name in read]


def parse_value(name: str, text: str) -> Any:
    """Return the value of ``--set name=text``, read as TOML.

    A bare word is a string, and so is any value of a text field; ``on`` and ``off`` mean true and
    false.

    Raises:
        ConfigError: If the field does not exist; the message names the nearest one.
    """
    types_by_name = {n: t for n, t, _, _ in fields_of()}
    if name not in types_by_name:
        raise ConfigError(unknown_field(name, list(types_by_name)))
    kind = types_by_name[name]
    if text.lower() == "none" and types.NoneType in typing.get_args(kind):
        return None
    if kind is bool and text in ("on", "off"):
        return text == "on"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, an integer of 5000 digits, 1000 brackets
        return text
    is_text = typing.get_args(kind)[:1] == (str,)
    return text if is_text and not isinstance(value, str) else value


def unknown_field(name: str, known: list[str]) -> str:
    """Return an error message with the nearest known field.

    It is one with the same last part, or with this as one of its words, or with similar letters.
    The message for a table of fields is another one.
    """
    if inside := [k for k in known if k.startswith(f"{name}.")]:
        return f"{name} is a table of fields; set one of them, such as {inside[0]}"
    tails, tail = {k: k.rpartition(".")[2] for k in known}, name.rpartition(".")[2]
    near = [k for k in known if tails[k] == tail]
    near = near or [k for k in known if tail in tails[k].split("_")]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}"
    return f"unknown field {name if len(name) <= 100 else f'{name[:100]}…'}{hint}"


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with some dotted fields changed, validated again.

    Raises:
        ConfigError: If a field is unknown or a value out of range.
    """
    known = _field_names()
    mapping = to_mapping(config)
    method = changes.get("method.name", config.method.name)
    if not isinstance(method, str):
        raise ConfigError(f"method.name: wanted one of {', '.join(METHODS)}, got {_short(method)}")
    if method != config.method.name:
        # Another method: what was chosen goes with it, where it has such a field; defaults do not.
        method_fields = dataclasses.fields(config.method)
        chosen = {f.name for f in method_fields if getattr(config.method, f.name) != f.default}
        own = {f.name for f in dataclasses.fields(METHODS.get(method, DTConfig))}
        mapping["method"] = {k: v for k, v in mapping["method"].items() if k in chosen & own}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(unknown_field(name, known))
        *path, last = name.split(".")
        table = mapping
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return from_mapping(mapping)


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Return nested dictionaries of plain values, without None, because TOML has no null."""

    def drop_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop_none(v) for k, v in value.items() if v is not None}
        return value

    return drop_none(dataclasses.asdict(config))


def from_mapping(mapping: Mapping[str, Any], source: str = "") -> RunConfig:
    """Return a validated configuration.

    Raises:
        ConfigError: One line with the field, the wanted and the given value.
    """
    where = f"{source}: " if source else ""
    filled = dict(mapping)
    if isinstance(filled.get("method"), Mapping):
        filled["method"] = {"name": "dt"} | dict(filled["method"])
    try:
        return TypeAdapter(RunConfig).validate_python(filled)
    except ValidationError as error:
        raise ConfigError(where + _first_error(error)) from None
    except RecursionError:
        raise ConfigError(f"{where}is nested too deeply") from None


def _first_error(error: ValidationError) -> str:
    """Return one line with the field, the wanted and the given value."""
    first = error.errors()[0]
    parts = [part for part in first["loc"] if isinstance(part, str)]
    method = parts.pop(1) if parts[0] == "method" and len(parts) > 1 else "dt"
    name = ".".join(parts)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if parts[0] == "method" and (owners := methods_with(parts[-1])):
            return f"{name}: is not a field of method {method}; it belongs to {', '.join(owners)}"
        return unknown_field(name, [n for n, *_ in fields_of()])
    if first["type"].startswith("union_tag"):
        came = _short(first["input"]["name"])
        return f"method.name: wanted one of {', '.join(METHODS)}, got {came}"
    # pydantic adds the member of a union that failed, as in method.sigma.float
    name = next((n for n, *_ in fields_of() if f"{name}.".startswith(f"{n}.")), name)
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] != "literal_error":  # a number, or one of some words
        words = [e["msg"] for e in error.errors()[1:] if e["type"] == "literal_error"]
        message += "".join(f", or {word.removeprefix('Input should be ')}" for word in words[:1])
    return f"{name}: {message}, got {_short(first['input'])}"


def _short(value: Any) -> str:
    """Return a value as Python writes it, truncated if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits; deep nesting
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}… ({len(text)} characters)"


def to_toml(config: RunConfig) -> str:
    """Return the complete configuration as TOML."""
    return tomli_w.dumps(to_mapping(config))


def from_toml(path: Path) -> RunConfig:
    """Read a configuration file; missing fields have their defaults.

    Raises:
        ConfigError: If the file cannot be read, is not TOML, or has a field that is unknown or out
            of range.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:  # the time to parse some files is quadratic in the size
            raise ConfigError(f"{path}: a configuration has at most {MAX_FILE_BYTES} bytes")
        return from_mapping(tomllib.loads(content.decode()), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # of the syntax, the encoding, or a number of too many digits
        raise ConfigError(f"{path}: is not a TOML file: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
