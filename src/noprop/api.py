"""The few calls of a script: train a recipe, load a run, predict.

model = noprop.train("digits-dt")
labels = model.predict(images).argmax(dim=1)
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from noprop.build import (
    RunData,
    build_embedding,
    build_method,
    choose_device,
    load_data,
    unit_names,
)
from noprop.build import (
    resolve_auto as resolve_method_auto,
)
from noprop.config import RunConfig, replace
from noprop.data import absolute_name
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, DataError, RunError
from noprop.evaluate import choose_weights, evaluate
from noprop.files import write_whole
from noprop.model import load_model, open_run, save_model
from noprop.recipes import find_recipe
from noprop.run.assembly import assemble_model, check_trained
from noprop.run.engines import Engine, LocalEngine
from noprop.run.folder import clear_places, create_run, join_run, make_free_folder
from noprop.run.groups import thread_count
from noprop.run.locks import hold_assembly, remove_half_written
from noprop.run.member import joined
from noprop.run.metrics import training_cost
from noprop.run.runs import train_units as train_groups_of_run
from noprop.run.torchrun import train_as_member
from noprop.run.units import UnitState, choose_groups, survey
from noprop.trained_model import TrainedModel
from noprop.training.events import Created, Emit, Evaluated, Evaluating, print_nothing
from noprop.training.layout import choose_layout

__all__ = [
    "assemble",
    "join",
    "load",
    "prepare_run",
    "resume",
    "resolve_auto",
    "train",
    "train_together",
    "train_units",
]


def train(
    recipe: str | RunConfig = "digits-dt",
    *,
    folder: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> TrainedModel:
    """Train a recipe from its beginning, and evaluate it on the test part.

    Args:
        recipe: a name of ``noprop.RECIPES``, or a configuration.
        folder: where the run goes; ``runs/<recipe>`` unless given, with a number if that is taken.
        overrides: fields to change, such as ``{"train.epochs": 2}``.
        data_dir: the first place to look for data.
        data: the data itself, in place of reading ``data.dataset``.
        encoder: makes an ``nn.Module`` x → features (B, F) that replaces the convolutions; called
            once a block, or with ``train.offload`` each time a block comes back into memory. A
            function of a module, so that worker processes can be sent it.
        engine: where units are trained, such as ``noprop.RayEngine()``; on processes of this
            machine unless given.
        emit: called with every event of training.

    Raises:
        NoPropError: If anything the caller gave is wrong.
    """
    config = find_recipe(recipe) if isinstance(recipe, str) else recipe
    config, data = prepare_run(config, overrides, data_dir, data, encoder, engine or LocalEngine())
    config, embedding = _resolved_and_tried(config, None, data, encoder)
    with (engine or LocalEngine()).opened(config):
        path = Path(folder) if folder else make_free_folder(config.recipe)
        create_run(path, config, embedding)
        emit(Created(str(path)))
        return _finish(path, config, data, emit, encoder, engine)


def prepare_run(
    config: RunConfig,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
) -> tuple[RunConfig, RunData]:
    """The configuration as wanted, and its data; what cannot be trained so is an error."""
    changes = dict(overrides or {})
    if encoder is not None:
        changes["method.encoder"] = "custom"
    config = replace(config, changes)
    if engine is not None:
        engine.expect(config)
    if data is None:
        data = load_data(config, Path(data_dir) if data_dir else None)
        config = replace(config, {"data.dataset": absolute_name(config.data.dataset)})
    choose_device(config.train.device)
    if len(data.train) < 2:
        raise DataError(
            f"{config.data.dataset}: wanted at least two examples to train on, for batch norm, "
            f"got {len(data.train)}; see data.train_size"
        )
    for field in ("crop_padding", "flip"):
        if getattr(config.train, field) and data.train.x.dtype != torch.uint8:
            raise ConfigError(
                f"train.{field}: only images are augmented, and {config.data.dataset} has features "
                f"of shape {data.task.shape}"
            )
    return config, data


def resolve_auto(
    config: RunConfig,
    there: RunConfig | None = None,
    embedding: Embedding | None = None,
    shards: int = 1,
) -> RunConfig:
    """The configuration with a value for each ``auto`` that changes weights.

    Sums depend on the numbers of threads and shards in their last digits, so that a run keeps them
    on any machine.

    Args:
        config: as wanted.
        there: that of the run, if it exists: its values are taken.
        embedding: W_Embed before training, for a new run.
        shards: their number, where neither configuration has one.
    """
    shards = config.train.shards or (there and there.train.shards) or shards
    config = replace(config, {"train.shards": shards})
    threads = config.train.threads or (there and there.train.threads) or thread_count(config)
    config = replace(config, {"train.threads": threads})
    if embedding is not None:
        config = resolve_method_auto(config, embedding)
    if there is not None:
        autos = config.method.auto_fields
        has = {f"method.{name}": getattr(there.method, name, "auto") for name in autos}
        config = replace(config, has)
    return config


def _resolved_and_tried(
    config: RunConfig,
    there: RunConfig | None,
    data: RunData,
    encoder: EncoderFactory | None,
    shards: int = 1,
) -> tuple[RunConfig, Embedding | None]:
    """The configuration without ``auto``, and W_Embed of a new run.

    A configuration that cannot be built raises its error here, before a run folder is made.
    """
    if there is not None:
        return resolve_auto(config, there, shards=shards), None
    embedding = build_embedding(config, data.task, data.train)
    config = resolve_auto(config, embedding=embedding, shards=shards)
    build_method(config, data.task, embedding, factory=encoder, only=unit_names(config)[0])
    return config, embedding


def train_together(
    recipe: str | RunConfig | None = None,
    *,
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    emit: Emit = print_nothing,
) -> TrainedModel:
    """Train a run on all processes that torchrun started, each of which calls this.

    Args:
        recipe: a name of ``noprop.RECIPES``, or a configuration; that of the folder unless given.
        folder: the run, on a file system that all machines share. It is made if it is absent, or
            gone on with if it was made for the same training.
        overrides: fields to change.
        data_dir: the first place to look for data; each process reads them.
        data: the data itself, in place of reading ``data.dataset``; the same in each process.
        encoder: as :func:`train` takes it.
        emit: called with every event of training, on rank 0.

    Returns:
        The finished run, in each process.

    Raises:
        NoPropError: If anything the caller gave is wrong, or a process has ended that others need.
    """
    path, member = Path(folder), joined()
    config = find_recipe(recipe) if isinstance(recipe, str) else recipe or open_run(path)
    config, data = prepare_run(config, overrides, data_dir, data, encoder)

    def make() -> list[int]:
        there = open_run(path) if (path / "config.toml").exists() else None
        shards = choose_layout(config, member.world, shards=config.train.shards).shards
        made, embedding = _resolved_and_tried(config, there, data, encoder, shards)
        join_run(path, made, embedding)
        return [made.train.threads, made.train.shards]

    threads, shards = member.decide("numbers", make)
    if not _comes_to_be(path / "config.toml"):
        raise RunError(
            f"rank {member.rank}: {path} is not to be seen on {os.uname().nodename}; have the run "
            "in a folder that all machines share"
        )
    config = replace(config, {"train.threads": threads, "train.shards": shards})
    config = resolve_auto(config, open_run(path))
    train_as_member(member, path, config, data, emit, encoder)
    model = _assemble(path, config, data, emit, encoder) if member.rank == 0 else None
    member.part()
    return model or load(path, encoder=encoder)


def _comes_to_be(path: Path, patience: float = 10.0) -> bool:
    """Whether a file is there, or is soon: a network file system may be some seconds behind."""
    deadline = time.monotonic() + patience
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def train_units(
    folder: Path | str,
    units: Sequence[str],
    recipe: str | RunConfig | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> list[UnitState]:
    """Train some units of a run, on any machine, at any time, in any order; :func:`assemble` ends.

    The folder is made if it is absent, or joined if it was made for the same training. Units that
    are trained already are left as they are, one that was stopped goes on from its checkpoint.

    Args:
        folder: the run.
        units: names, and ranges such as ``block-3..block-7``.
        recipe: a name of ``noprop.RECIPES``, or a configuration; that of the folder unless given.
        overrides: fields to change. Where the folder is there already, only those that change no
            weight can differ from its own, such as ``train.workers``.
        data_dir: the first place to look for data.
        data: the data itself, in place of reading ``data.dataset``.
        encoder: as :func:`train` takes it.
        engine: as :func:`train` takes it.
        emit: called with every event of training.

    Returns:
        How far each unit of the run is, those included that other processes train.

    Raises:
        NoPropError: If anything the caller gave is wrong; if the folder is the run of another
            training; or if another process is training one of the units.
    """
    path = Path(folder)
    there = open_run(path) if recipe is None or (path / "config.toml").exists() else None
    config = find_recipe(recipe) if isinstance(recipe, str) else recipe or there
    assert config
    groups = choose_groups(replace(config, overrides or {}), units)
    config, data = prepare_run(config, overrides, data_dir, data, encoder, engine or LocalEngine())
    with (engine or LocalEngine()).opened(config):
        config = join(path, config, data, encoder)
        train_groups_of_run(path, config, data, emit, encoder, groups, engine)
    return survey(path, config)


def join(
    folder: Path, config: RunConfig, data: RunData, encoder: EncoderFactory | None = None
) -> RunConfig:
    """Make a run folder, or see that the one which is there was made for the same training.

    Returns:
        The configuration, with the numbers that the run has for what is auto.

    Raises:
        NoPropError: If it is the folder of another training, or what is wanted cannot be built.
    """
    there = open_run(folder) if (folder / "config.toml").exists() else None
    config, embedding = _resolved_and_tried(config, there, data, encoder)
    join_run(folder, config, embedding)
    return config


def assemble(
    folder: Path | str,
    *,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    emit: Emit = print_nothing,
) -> TrainedModel:
    """Put a run's trained units together, fit the path weights, evaluate, and write the model.

    Raises:
        RunError: If a unit is missing, unfinished, damaged, or trained with other settings or data
            than the others; nothing is written then.
    """
    path = Path(folder)
    config = open_run(path)
    check_trained(path, config)
    data = data or load_data(config, Path(data_dir) if data_dir else None)
    return _assemble(path, config, data, emit, encoder)


def resume(
    folder: Path | str,
    *,
    workers: int | str | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> TrainedModel:
    """Go on with a run, wherever it was stopped: the result is that of a run never stopped.

    ``workers`` replaces ``train.workers``; all else that :func:`train` was given is given again.
    """
    path = Path(folder)
    config = open_run(path)
    if workers is not None:
        config = replace(config, {"train.workers": workers})
    (engine or LocalEngine()).expect(config)
    data = data or load_data(config, Path(data_dir) if data_dir else None)
    return _finish(path, config, data, emit, encoder, engine)


def _finish(
    path: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit,
    encoder: EncoderFactory | None,
    engine: Engine | None,
) -> TrainedModel:
    train_groups_of_run(path, config, data, emit, encoder, engine=engine)
    return _assemble(path, config, data, emit, encoder)


def _assemble(
    path: Path, config: RunConfig, data: RunData, emit: Emit, encoder: EncoderFactory | None
) -> TrainedModel:
    with hold_assembly(path):
        remove_half_written(path, "evaluation.json", "model.safetensors", "model.json")
        clear_places(path)
        model = assemble_model(path, config, data, encoder)
        emit(Evaluating())
        choose_weights(model, data.validation)
        results = evaluate(model, data.test) | {"part": "test"}
        if training := training_cost(path):
            results["training"] = training
        write_whole(path / "evaluation.json", _json(results))
        save_model(path, model)
    emit(Evaluated(results))
    return TrainedModel(path, model)


def _json(value: Any) -> bytes:
    import json

    return (json.dumps(value, indent=1) + "\n").encode()


def load(
    folder: Path | str,
    *,
    device: str | None = None,
    encoder: EncoderFactory | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """The model of a finished run. Nothing in the folder is executed.

    Args:
        folder: the run.
        device: another device than it was trained on.
        encoder: as given to :func:`train`, for a run with an encoder of one's own.
        overrides: of fields that change no weight, such as ``{"method.steps": 100}`` of CT and FM;
            see :func:`noprop.config.inference_fields`.
    """
    path = Path(folder)
    if open_run(path).method.encoder == "custom" and encoder is None:
        raise RunError(f"{path}: was trained with an encoder of its own; give it as encoder")
    model = load_model(path, device=device, factory=encoder, changes=overrides)
    return TrainedModel(path, model)
