"""The configuration of a run: a recipe with changes, its data, and a value for each ``auto``.

A new run is resolved from its data. One that joins an existing run takes the values from that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noprop.build import build_embedding, build_method, resolve_auto, resolve_layers
from noprop.config import RunConfig, replace
from noprop.data import GIVEN, absolute_name, dataset_of
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, DataError
from noprop.machine import choose_device, threads_per_process
from noprop.recipes import find_recipe, named_after_data
from noprop.run.initial import start_embedding
from noprop.task import RunData, load_data, split_data

__all__ = ["resolve", "resolve_from", "resolve_new", "thread_count", "with_data"]


def resolve(
    recipe: str | RunConfig,
    overrides: Mapping[str, Any] | None = None,
    encoder: EncoderFactory | None = None,
) -> RunConfig:
    """Return the configuration of a recipe, with some fields changed.

    See :meth:`noprop.run.run.Run.create` for the arguments.

    Raises:
        ConfigError: If there is no such recipe or field, or a value is wrong.
    """
    config = find_recipe(recipe) if isinstance(recipe, str) else recipe
    custom = {} if encoder is None else {"method.encoder": "custom"}
    return replace(config, {**(overrides or {}), **custom})


def with_data(
    config: RunConfig, data: RunData | Sequence[Any] | None, data_dir: Path | str | None
) -> tuple[RunConfig, RunData]:
    """Return the configuration and its data, which may be given as arrays.

    A recipe that is given other data than its own is named after them.

    Raises:
        NoPropError: If there are no such data, or they cannot be trained on so.
    """
    choose_device(config.train.device)
    if data is None:
        data = load_data(config, Path(data_dir) if data_dir else None)
        config = replace(config, {"data.dataset": absolute_name(config.data.dataset)})
    elif not isinstance(data, RunData):
        if not isinstance(data, tuple | list):
            raise DataError(
                f"data: wanted arrays (x, y) or (x, y, x_test, y_test), got {type(data).__name__}"
            )
        config = replace(config, {"data.dataset": GIVEN})
        data = split_data(config, dataset_of(data))
    if len(data.train) < 2:
        raise DataError(
            f"{config.data.dataset}: wanted at least two examples to train on, for batch norm, "
            f"got {len(data.train)}; see data.train_size"
        )
    if config.train.patience and len(data.validation) < 2:
        raise ConfigError(
            f"train.patience: needs a validation part of at least two examples, and "
            f"data.validation={config.data.validation:g} of {config.data.dataset} gives "
            f"{len(data.validation)}"
        )
    for field in ("crop_padding", "flip", "cutout"):
        if getattr(config.train, field) and data.train.x.dtype != torch.uint8:
            raise ConfigError(
                f"train.{field}: only images are augmented, and {config.data.dataset} has features "
                f"of shape {data.task.shape}"
            )
    for field, what in (("crop_padding", "a crop with"), ("cutout", "a square of")):
        most = min(data.train.x.shape[-2:]) - 1
        if (pixels := getattr(config.train, field)) > most:
            raise ConfigError(
                f"train.{field}: {what} {pixels} pixels can leave nothing of an image of "
                f"{config.data.dataset}; wanted at most {most}"
            )
    return named_after_data(config), data


def resolve_new(
    config: RunConfig,
    data: RunData,
    encoder: EncoderFactory | None,
    initial: Mapping[str, Tensor] | None = None,
) -> tuple[RunConfig, Embedding]:
    """Return the configuration of a new run without ``auto``, and W_Embed before training.

    ``initial`` are the tensors that the run starts from, if it does not start from its seed.
    A configuration that cannot be built raises its error here, before a run folder is made.
    """
    config = resolve_layers(config, data.task, encoder)
    embedding = build_embedding(config, data.task, data.train)
    start_embedding(embedding, initial or {})
    config = resolve_auto(_with_counts(config, config.train.shards or 1), embedding)
    build_method(config, data.task, embedding, factory=encoder, only=config.method.unit_names[0])
    return config, embedding


def resolve_from(config: RunConfig, existing: RunConfig) -> RunConfig:
    """Return a configuration with the values of an existing run for each ``auto``."""
    shards = config.train.shards or existing.train.shards or 1
    config = _with_counts(config, shards, existing.train.threads)
    autos = config.method.auto_fields
    return replace(
        config, {f"method.{name}": getattr(existing.method, name, "auto") for name in autos}
    )


def _with_counts(config: RunConfig, shards: int, threads: int = 0) -> RunConfig:
    """Fix the numbers of shards and threads: sums depend on them in their last digits."""
    config = replace(config, {"train.shards": shards})
    return replace(
        config, {"train.threads": config.train.threads or threads or thread_count(config)}
    )


def thread_count(config: RunConfig) -> int:
    """Return the threads of each training process: as many as asked for.

    Otherwise one, since blocks over processes use all cores better. A method of one unit and a
    stack have nothing to spread; they get as many as torch would take, divided among shards.
    """
    alone = len(config.method.unit_names) == 1 or config.method.stack
    return config.train.threads or (threads_per_process(config.train.shards) if alone else 1)
