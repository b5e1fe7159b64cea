"""What a run is made of: frozen, validated dataclasses, and their way to and from TOML.

A component knows nothing of these; ``build.py`` turns them into objects. Every field's docstring
here is also its help on the command line.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from noprop.errors import ConfigError

__all__ = [
    "DTConfig",
    "DataConfig",
    "EvaluationConfig",
    "RunConfig",
    "TrainConfig",
    "fields_of",
    "from_mapping",
    "from_toml",
    "parse_value",
    "replace",
    "to_mapping",
    "to_toml",
]

Positive = Annotated[int, Field(ge=1)]
STRICT = ConfigDict(extra="forbid")


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which examples, and how they are divided."""

    dataset: str = _help("digits", "name, folder of class folders, or .npz file")
    image_size: Positive | None = _help(
        None, "side in pixels that a folder's images are resized to"
    )
    color: Literal["auto", "grey", "rgb"] = _help("auto", "how a folder's images are read")
    validation: Annotated[float, Field(ge=0, lt=1)] = _help(
        0.1, "fraction of the training set held out for choosing, stratified"
    )


@dataclass(frozen=True, config=STRICT)
class DTConfig:
    """NoProp with discrete time."""

    name: Literal["dt"] = _help("dt", "the method")
    num_blocks: Annotated[int, Field(ge=1, le=10_000)] = _help(10, "T, blocks of the chain")
    eta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _help(
        0.1, "weight of the denoising terms (Eq. 8)"
    )
    embedding: Literal["one-hot", "orthogonal", "random", "prototype"] = _help(
        "one-hot", "class embeddings, or what learned ones start from"
    )
    learned: bool = _help(False, "train the embeddings (all kinds but one-hot)")
    dim: Positive | None = _help(None, "d of orthogonal and random embeddings; 20 unless given")
    offset: Annotated[float, Field(gt=0, lt=1)] = _help(0.008, "s of the cosine schedule")
    epsilon: Annotated[float, Field(gt=0, lt=0.5)] = _help(1e-6, "bound on ᾱ and 1 - ᾱ")
    readout: Literal["softmax", "radial"] = _help("softmax", "kind of readout (Eqs. 14-16)")
    readout_start: Literal["nearest", "random"] = _help(
        "nearest", "start the readout as the nearest-embedding classifier, or at random"
    )
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = _help(
        None, "σ of the radial readout"
    )
    encoder: Literal["auto", "conv", "small", "mlp", "custom"] = _help(
        "auto", "image path: Fig. 5, small convolutions, MLP, or a function given as encoder"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = _help(0.2, "probability of dropping a feature")


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How the units are trained."""

    epochs: Positive = _help(5, "passes over the training set")
    batch_size: Annotated[int, Field(ge=2)] = _help(128, "examples a step")
    order: Literal["sequential", "parallel"] = _help(
        "sequential", "Algorithm 1 (block after block in each epoch), or all blocks on each batch"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = _help("adamw", "one of these for each unit")
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _help(1e-3, "learning rate")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _help(1e-3, "weight decay")
    crop_padding: Annotated[int, Field(ge=0)] = _help(0, "augment: random crops, padded by this")
    flip: bool = _help(False, "augment: mirror half of the images")
    seed: Annotated[int, Field(ge=0)] = _help(0, "of everything random")
    device: str = _help("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bf16"] = _help(
        "auto", "bf16 where the device has instructions for it"
    )
    channels_last: bool = _help(True, "memory order of images; faster on CPU and CUDA")
    workers: Annotated[int, Field(ge=0)] = _help(
        0, "worker processes, one thread each; 0 takes one a core"
    )
    checkpoint_every: Annotated[float, Field(ge=0)] = _help(
        20.0, "seconds of training between checkpoints"
    )


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """How the trained chain is read."""

    samples: Positive = _help(5, "K, chains to average")
    runs: Positive = _help(5, "inference runs behind each mean ± standard error")
    batch_size: Positive = _help(500, "examples at a time")


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything a run depends on."""

    recipe: str = _help("custom", "the recipe it began as")
    data: DataConfig = field(default_factory=DataConfig)
    method: DTConfig = field(default_factory=DTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.method.embedding == "one-hot" and self.method.learned:
            raise ConfigError("method.learned: one-hot embeddings are fixed; use orthogonal")
        if self.method.dim is not None and self.method.embedding in ("one-hot", "prototype"):
            raise ConfigError(
                f"method.dim: {self.method.embedding} embeddings have the dimension they have"
            )


# -- fields by dotted name ----------------------------------------------------------------------


def fields_of(cls: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Every leaf field: its dotted name, type, default and help."""
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.type):
            yield from fields_of(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f.type, f.default, f.metadata.get("help", "")


def parse_value(name: str, text: str) -> Any:
    """The text of ``--set name=text`` as TOML would read it.

    A bare word is a string, and so is whatever is given for a field of text; ``on`` and ``off``
    will do for true and false.

    Raises:
        ConfigError: If there is no such field; the message names the nearest.
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
    except tomllib.TOMLDecodeError:
        return text
    return text if kind is str and not isinstance(value, str) else value


def unknown_field(name: str, known: list[str]) -> str:
    """An error's words: the nearest known field, by its whole name or its last part."""
    tails = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    near = tails or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
    return f"unknown field {name}{hint}"


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with some dotted fields changed, validated anew.

    Raises:
        ConfigError: If a field is unknown or a value out of range.
    """
    known = [n for n, *_ in fields_of()]
    mapping = to_mapping(config)
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
    """Nested dictionaries of plain values, without the fields that are None: TOML has no null."""

    def drop_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop_none(v) for k, v in value.items() if v is not None}
        return value

    return drop_none(dataclasses.asdict(config))  # pyright: ignore[reportArgumentType]


def from_mapping(mapping: Mapping[str, Any], source: str = "") -> RunConfig:
    """A validated configuration.

    Raises:
        ConfigError: One line naming the field, what was wanted and what came.
    """
    where = f"{source}: " if source else ""
    try:
        return TypeAdapter(RunConfig).validate_python(dict(mapping))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        # pydantic adds the member of a union that failed, as in method.sigma.float
        name = next((n for n, *_ in fields_of() if f"{name}.".startswith(f"{n}.")), name)
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise ConfigError(where + unknown_field(name, [n for n, *_ in fields_of()])) from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"{where}{name}: {message}, got {first['input']!r}") from None


def to_toml(config: RunConfig) -> str:
    """The complete configuration as TOML."""
    return tomli_w.dumps(to_mapping(config))


def from_toml(path: Path) -> RunConfig:
    """Read a configuration file; fields it does not mention have their defaults.

    Raises:
        ConfigError: If the file cannot be read, is no TOML, or a field is unknown or out of range.
    """
    try:
        return from_mapping(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML file: {error}") from None
