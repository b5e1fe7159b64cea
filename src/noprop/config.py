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
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from noprop.errors import ConfigError
from noprop.files import open_regular
from noprop.method_config import (
    MAX_SAMPLES,
    METHODS,
    STRICT,
    AdjointConfig,
    BackpropConfig,
    CTConfig,
    DTConfig,
    FMConfig,
    Positive,
    Steps,
    Text,
    described,
)

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "RunConfig",
    "TrainConfig",
    "fields_of",
    "from_mapping",
    "from_toml",
    "methods_with",
    "parse_value",
    "reading_fields",
    "replace",
    "to_mapping",
    "to_toml",
]

AnyMethod = Annotated[
    DTConfig | CTConfig | FMConfig | BackpropConfig | AdjointConfig, Field(discriminator="name")
]


Count = Annotated[
    int, Field(ge=0, le=1024), BeforeValidator(lambda value: 0 if value == "auto" else value)
]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which examples, and how they are divided."""

    dataset: Text = described("digits", "name, folder of class folders, or .npz file")
    image_size: Annotated[int, Field(ge=1, le=1024)] | None = described(
        None, "side in pixels that a folder's images are resized to"
    )
    color: Literal["auto", "grey", "rgb"] = described("auto", "how a folder's images are read")
    validation: Annotated[float, Field(ge=0, lt=1)] = described(
        0.1, "fraction of the training set held out for choosing, stratified"
    )
    train_size: Positive | None = described(
        None, "train on so many examples only, stratified; validation and test stay whole"
    )
    test_size: Positive | None = described(
        None, "score on so many test examples only, stratified, the same for every seed"
    )
    normalization: Literal["standard", "unit", "symmetric"] = described(
        "standard", "inputs: mean 0 and deviation 1 of each channel, or pixels in 0..1 or -1..1"
    )


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How the units are trained."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = described(5, "passes over the training set")
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = described(128, "examples a step")
    order: Literal["sequential", "parallel"] = described(
        "sequential", "Algorithm 1 (block after block in each epoch), or all blocks on each batch"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = described("adamw", "one of these for each unit")
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = described(1e-3, "learning rate")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = described(
        1e-3, "weight decay"
    )
    crop_padding: Annotated[int, Field(ge=0, le=256)] = described(
        0, "augment: random crops, padded by this"
    )
    flip: bool = described(False, "augment: mirror half of the images")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = described(0, "of everything random")
    device: Text = described("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bf16"] = described(
        "auto", "bf16 where the device has instructions for it"
    )
    channels_last: bool = described(True, "memory order of images; faster on CPU and CUDA")
    shards: Count = described(
        0,
        "parts of a mini-batch, each batch-normalised by itself; auto, or 0: one, and under "
        "torchrun as many as processes share a unit",
    )
    workers: Count = described(0, "worker processes; auto, or 0, takes one a core")
    threads: Count = described(
        0, "threads of each process; auto, or 0: one, and all where a method is a single unit"
    )
    offload: bool = described(
        False, "learned embeddings: keep one block in memory, the others in files of the run"
    )
    checkpoint_every: Annotated[float, Field(ge=0, allow_inf_nan=False)] = described(
        20.0, "seconds of training between checkpoints"
    )
    keep_every: Annotated[int, Field(ge=0, le=1_000_000)] = described(
        0,
        "epochs between copies of the weights that stay, the last one too; 0 keeps none",
    )


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """How the trained chain is read."""

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = described(5, "K, chains to average")
    runs: Steps = described(5, "inference runs behind each mean ± standard error")
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = described(500, "examples at a time")


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything a run depends on."""

    # It names a folder, and must not lead out of the one that this is in.
    recipe: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)] = described(
        "custom", "the recipe it began as"
    )
    data: DataConfig = field(default_factory=DataConfig)
    method: AnyMethod = field(default_factory=DTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.method.embedding == "one-hot" and self.method.learned:
            raise ConfigError("method.learned: one-hot embeddings are fixed; use orthogonal")
        if self.method.dim is not None and self.method.embedding in ("one-hot", "prototype"):
            raise ConfigError(
                f"method.dim: {self.method.embedding} embeddings have the dimension they have"
            )
        if self.method.embedding_norm != 1 and self.method.embedding in ("one-hot", "prototype"):
            raise ConfigError(
                f"method.embedding_norm: {self.method.embedding} embeddings have the length they "
                f"have, got {self.method.embedding_norm}"
            )
        if self.train.batch_size < 2 * self.train.shards:
            raise ConfigError(
                f"train.shards: each of {self.train.shards} wants two examples at least, and "
                f"train.batch_size is {self.train.batch_size}"
            )
        if self.train.offload and self.train.order == "parallel":
            if isinstance(self.method, DTConfig) and self.method.learned:
                raise ConfigError(
                    "train.offload: with method.learned and train.order=parallel every mini-batch "
                    "visits every block, so none can wait in a file; use train.order=sequential"
                )
        if isinstance(self.method, CTConfig):
            room = 2 * self.method.gamma_room if self.method.schedule == "learned" else 0.0
            noise = self.method.gamma_noise
            if noise != "auto" and not noise - self.method.gamma_clean > room:
                raise ConfigError(
                    "method.gamma_noise: must exceed gamma_clean"
                    + (" by more than twice gamma_room" if room else "")
                    + f", got {noise} and {self.method.gamma_clean}"
                )


# -- fields by dotted name ----------------------------------------------------------------------


def fields_of(cls: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Every leaf field: its dotted name, type, default and help; those of all methods once each."""
    for f in dataclasses.fields(cls):
        if f.name == "method":
            yield from _method_fields()
        elif dataclasses.is_dataclass(f.type):
            yield from fields_of(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f.type, f.default, f.metadata.get("help", "")


def _method_fields() -> Iterator[tuple[str, Any, Any, str]]:
    """A field that not every method has says which do; ``name`` comes first."""
    yield "method.name", Literal[*METHODS], "dt", "the method: " + ", ".join(METHODS)
    seen = {"name"}
    for cls in METHODS.values():
        for f in dataclasses.fields(cls):
            if f.name not in seen:
                seen.add(f.name)
                owners = methods_with(f.name)
                some = f"{', '.join(owners)}: " if len(owners) < len(METHODS) else ""
                yield f"method.{f.name}", f.type, f.default, some + f.metadata.get("help", "")


def methods_with(name: str) -> list[str]:
    """The methods that have a field."""
    return [m for m, cls in METHODS.items() if name in {f.name for f in dataclasses.fields(cls)}]


def reading_fields(config: RunConfig) -> list[str]:
    """Fields that change no weight, only how the trained method is read: free after training."""
    own = [f.name for f in dataclasses.fields(config.method) if f.metadata.get("reading")]
    read = [f.name for f in dataclasses.fields(config.evaluation)]
    return [f"method.{name}" for name in own] + [f"evaluation.{name}" for name in read]


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
    except (ValueError, RecursionError):  # no TOML, an integer of 5000 digits, 1000 brackets
        return text
    is_text = typing.get_args(kind)[:1] == (str,)
    return text if is_text and not isinstance(value, str) else value


def unknown_field(name: str, known: list[str]) -> str:
    """An error's words: the nearest known field, by its whole name or its last part.

    A table is told from a field.
    """
    if inside := [k for k in known if k.startswith(f"{name}.")]:
        return f"{name} is a table of fields; set one of them, such as {inside[0]}"
    tails = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    near = tails or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
    return f"unknown field {name if len(name) <= 100 else f'{name[:100]}…'}{hint}"


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with some dotted fields changed, validated anew.

    Raises:
        ConfigError: If a field is unknown or a value out of range.
    """
    known = [n for n, *_ in fields_of()]
    mapping = to_mapping(config)
    method = changes.get("method.name", config.method.name)
    if not isinstance(method, str):
        raise ConfigError(f"method.name: wanted one of {', '.join(METHODS)}, got {_short(method)}")
    if method != config.method.name:
        # Another method: what was chosen goes with it, where it has such a field; defaults do not.
        chosen = {f.name for f in dataclasses.fields(config.method) if _differs(config.method, f)}
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


def _differs(config: Any, f: Any) -> bool:
    return getattr(config, f.name) != f.default


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
    """One line: the field, what was wanted and what came."""
    first = error.errors()[0]
    parts = [part for part in first["loc"] if isinstance(part, str)]
    method = parts.pop(1) if parts[0] == "method" and len(parts) > 1 else "dt"
    name = ".".join(parts)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if parts[0] == "method" and (owners := methods_with(parts[-1])):
            return f"{name}: is no field of method {method}; it belongs to {', '.join(owners)}"
        return unknown_field(name, [n for n, *_ in fields_of()])
    if first["type"].startswith("union_tag"):
        came = _short(first["input"]["name"])
        return f"method.name: wanted one of {', '.join(METHODS)}, got {came}"
    # pydantic adds the member of a union that failed, as in method.sigma.float
    name = next((n for n, *_ in fields_of() if f"{name}.".startswith(f"{n}.")), name)
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{name}: {message}, got {_short(first['input'])}"


def _short(value: Any) -> str:
    """A value as Python writes it, cut where that is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits; deep nesting
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}… ({len(text)} characters)"


def to_toml(config: RunConfig) -> str:
    """The complete configuration as TOML."""
    return tomli_w.dumps(to_mapping(config))


LONGEST = 2**14  # bytes of a configuration file


def from_toml(path: Path) -> RunConfig:
    """Read a configuration file; fields it does not mention have their defaults.

    Raises:
        ConfigError: If the file cannot be read, is no TOML, or a field is unknown or out of range.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:  # reading some takes a time that grows with the square
            raise ConfigError(f"{path}: is no configuration: it has more than {LONGEST} bytes")
        return from_mapping(tomllib.loads(content.decode()), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # of the syntax, the encoding, or a number of too many digits
        raise ConfigError(f"{path}: is no TOML file: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
