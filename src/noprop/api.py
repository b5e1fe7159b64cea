"""The few calls of a script: train a recipe, load a run, predict.

model = noprop.train("digits-dt")
labels = model.predict(images).argmax(dim=1)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from noprop.build import (
    RunData,
    build_embedding,
    build_method,
    choose_device,
    load_data,
    unit_names,
)
from noprop.config import RunConfig, replace
from noprop.data import Examples, lasting_name
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, DataError, RunError
from noprop.methods.chains import check_samples
from noprop.randomness import generator
from noprop.recipes import find_recipe
from noprop.training.checkpoint import write_whole
from noprop.training.engines import Engine, LocalEngine
from noprop.training.evaluate import (
    choose_weights,
    evaluate,
    has_own_code,
    inputs,
    prepare,
)
from noprop.training.folder import create_run, join_run
from noprop.training.groups import thread_count
from noprop.training.locks import hold_assembly, remove_half_written
from noprop.training.metrics import training_cost
from noprop.training.model import Model, load_model, open_run, save_model
from noprop.training.parallel import side_by_side
from noprop.training.runs import check_trained, put_together
from noprop.training.runs import train_units as train_groups_of_run
from noprop.training.units import UnitState, choose_groups, survey

__all__ = [
    "TrainedModel",
    "assemble",
    "free_folder",
    "join",
    "load",
    "prepare_run",
    "resume",
    "train",
    "train_units",
    "with_threads",
]

Emit = Callable[[dict[str, Any]], None]


class TrainedModel:
    """A finished run: predicts, and knows how well.

    Attributes:
        folder: the run.
        config: its configuration.
        class_names: name of each label.
    """

    def __init__(self, folder: Path, model: Model):
        self.folder = folder
        self.model = model
        self.config = model.config
        self.class_names = model.task.class_names

    def predict(
        self,
        x: Tensor | NDArray[Any],
        *,
        samples: int | None = None,
        noise: bool | None = None,
        average: str | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Class probabilities, shape (N, m), on the CPU.

        Args:
            x: raw inputs of the kind the run was trained on: uint8 images (N, C, H, W), or float32
                features (N, …).
            samples: K, chains to average; the run's ``evaluation.samples`` unless given. 1 with
                ``average="readout"`` is the paper's single run, a sample from p(y|x).
            noise: without it, the mean chain. Unless given, with noise where ``samples`` or
                ``average="readout"`` asks for chains, else as the method does best.
            average: ``path``, weighted as the validation part chose, or ``readout``; ``path``
                unless given, where the method has one.
            seed: of the chains.

        Raises:
            DataError: If ``x`` has another shape or type than the model was trained on, or is not
                finite.
            ConfigError: If ``samples`` is below 1, or the method cannot average so.
        """
        if noise is None:
            chains_wanted = samples is not None or average == "readout"
            noise = self.model.method.noise_by_default or chains_wanted
        if samples is None:
            samples = self.config.evaluation.samples
        try:
            check_samples(samples)
            self.model.method.averages(average)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        x = torch.as_tensor(x)
        shape, dtype = self.model.task.shape, self.model.task.dtype
        came = str(x.dtype).removeprefix("torch.")
        if tuple(x.shape[1:]) != shape or came != dtype:
            raise DataError(
                f"x: wanted {dtype} of shape (N, {', '.join(map(str, shape))}), as the run was "
                f"trained on, got {came} of shape {tuple(x.shape)}"
            )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError("x: wanted finite numbers, got NaN or infinity")

        def answer(chunk: tuple[int, Tensor]) -> Tensor:
            index, raw = chunk
            batch = inputs(self.model, raw)
            prediction = self.model.method.predict(
                batch,
                generator(seed, "predict", index, device=self.model.device),
                samples=samples,
                noise=noise,
                average=average,
                prepared=prepare(self.model, batch),
            )
            return prediction.probabilities.cpu()

        if len(x) == 0:
            return torch.empty(0, self.model.task.num_classes)
        chunks = list(enumerate(x.split(self.config.evaluation.batch_size)))
        apart = has_own_code(self.model)
        return torch.cat(side_by_side(answer, chunks, self.model.device, apart=apart))

    def evaluate(self, data_dir: Path | None = None, part: str = "test") -> dict[str, Any]:
        """Measure on a part of the run's own data; see :mod:`noprop.training.evaluate`.

        Args:
            data_dir: the first place to look for the data.
            part: ``test``, ``validation`` or ``train``.

        Raises:
            ConfigError: If there is no such part, or no example in it.
        """
        if part not in ("test", "validation", "train"):
            raise ConfigError(f"part must be test, validation or train, got {part!r}")
        examples = self.examples(part, data_dir)
        if len(examples) == 0:
            raise ConfigError(f"part: the {part} part of {self.config.data.dataset} is empty")
        return evaluate(self.model, examples) | {"part": part}

    def examples(self, part: str, data_dir: Path | None = None) -> Examples:
        """A part of the run's own data, read anew.

        Raises:
            DataError: If it is not to be had, or is no longer what the model was trained on.
        """
        data, task = load_data(self.config, data_dir), self.model.task
        name = self.config.data.dataset
        if (data.task.shape, data.task.dtype) != (task.shape, task.dtype):
            raise DataError(
                f"{name}: has {data.task.dtype} examples of shape {data.task.shape}; "
                f"{self.folder} was trained on {task.dtype} of {task.shape}"
            )
        if data.task.class_names != task.class_names:
            raise DataError(
                f"{name}: has the classes {_some(data.task.class_names)}; {self.folder} was "
                f"trained on {_some(task.class_names)}"
            )
        return getattr(data, part)


def _some(names: Sequence[str]) -> str:
    """The first few, and how many."""
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")


def train(
    recipe: str | RunConfig = "digits-dt",
    *,
    folder: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = lambda event: None,
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
    config, data = prepare_run(config, overrides, data_dir, data, encoder)
    # Sums depend on it in their last digits: a run goes on with as many, on whatever machine.
    config = replace(config, {"train.threads": thread_count(config)})
    embedding = _try_building(config, data, encoder)
    path = Path(folder) if folder else free_folder(config.recipe)
    with (engine or LocalEngine()).opened(config):
        create_run(path, config, embedding)
        return _finish(path, config, data, emit, encoder, engine)


def prepare_run(
    config: RunConfig,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
) -> tuple[RunConfig, RunData]:
    """The configuration as wanted, and its data; what cannot be trained so is an error."""
    changes = dict(overrides or {})
    if encoder is not None:
        changes["method.encoder"] = "custom"
    config = replace(config, changes)
    if data is None:
        data = load_data(config, Path(data_dir) if data_dir else None)
        config = replace(config, {"data.dataset": lasting_name(config.data.dataset)})
    choose_device(config.train.device)
    for field in ("crop_padding", "flip"):
        if getattr(config.train, field) and data.train.x.dtype != torch.uint8:
            raise ConfigError(
                f"train.{field}: only images are augmented, and {config.data.dataset} has features "
                f"of shape {data.task.shape}"
            )
    return config, data


def _try_building(config: RunConfig, data: RunData, encoder: EncoderFactory | None) -> Embedding:
    """W_Embed; what cannot be built is found here, before a run folder is there for it."""
    embedding = build_embedding(config, data.task, data.train)
    build_method(config, data.task, embedding, factory=encoder, only=unit_names(config)[0])
    return embedding


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
    emit: Emit = lambda event: None,
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
    config, data = prepare_run(config, overrides, data_dir, data, encoder)
    with (engine or LocalEngine()).opened(config):
        config = join(path, config, data, encoder)
        train_groups_of_run(path, config, data, emit, encoder, groups, engine)
    return survey(path, config)


def join(
    folder: Path, config: RunConfig, data: RunData, encoder: EncoderFactory | None = None
) -> RunConfig:
    """Make a run folder, or see that the one which is there was made for the same training.

    Returns:
        The configuration, with as many threads as the run has.

    Raises:
        NoPropError: If it is the folder of another training, or what is wanted cannot be built.
    """
    there = open_run(folder) if (folder / "config.toml").exists() else None
    config = with_threads(config, there)
    join_run(folder, config, None if there else _try_building(config, data, encoder))
    return config


def with_threads(config: RunConfig, there: RunConfig | None) -> RunConfig:
    """As many threads as the other units of a run have, whatever this machine would take."""
    if there is None or config.train.threads:
        return replace(config, {"train.threads": thread_count(config)})
    return replace(config, {"train.threads": there.train.threads})


def assemble(
    folder: Path | str,
    *,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    emit: Emit = lambda event: None,
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
    emit: Emit = lambda event: None,
) -> TrainedModel:
    """Go on with a run, wherever it was stopped: the result is that of a run never stopped.

    ``workers`` replaces ``train.workers``; all else that :func:`train` was given is given again.
    """
    path = Path(folder)
    config = open_run(path)
    if workers is not None:
        config = replace(config, {"train.workers": workers})
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
        model = put_together(path, config, data, encoder)
        emit({"event": "evaluating"})
        choose_weights(model, data.validation)
        results = evaluate(model, data.test) | {"part": "test"}
        if training := training_cost(path):
            results["training"] = training
        write_whole(path / "evaluation.json", _json(results))
        save_model(path, model)
    emit({"event": "evaluated", "results": results})
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
            see :func:`noprop.config.reading_fields`.
    """
    path = Path(folder)
    if open_run(path).method.encoder == "custom" and encoder is None:
        raise RunError(f"{path}: was trained with an encoder of its own; give it as encoder")
    model = load_model(path, device=device, factory=encoder, changes=overrides)
    return TrainedModel(path, model)


def free_folder(name: str, parent: Path = Path("runs")) -> Path:
    """``<parent>/<name>``, or the first of ``-2``, ``-3``, … that is not taken."""
    first = parent / name
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path
