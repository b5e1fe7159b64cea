"""A trained method: prediction, evaluation, and its files, read without executing any code.

``config.toml`` describes the method and ``model.safetensors`` holds its weights. ``model.json``
holds what comes from the data: shapes, names, input statistics and weights of the path average.
"""

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, from_toml, inference_fields, replace, to_mapping, to_toml
from noprop.data import Examples, Normalization
from noprop.encoder_file import check_encoder
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, RunError
from noprop.evaluate import (
    check_finite,
    evaluate,
    has_own_code,
    inputs,
    prepare,
    read_evaluation,
)
from noprop.files import check_folder, read_object, write_whole
from noprop.hub import FILES, download, model_card, published_name, upload
from noprop.machine import choose_device, map_in_threads, use_bf16
from noprop.methods.base import Method
from noprop.model_checks import check_description, check_trained_with, misfit
from noprop.model_inputs import check_same_data, raw_inputs
from noprop.randomness import generator
from noprop.run_settings import MAX_SAMPLES
from noprop.task import Task, load_data
from noprop.tensor_files import (
    check_utf8_name,
    flatten,
    load_tensors,
    save_tensors,
    unflatten,
)
from noprop.terminal import printable
from noprop.training.events import Emit, Evaluating, print_nothing

__all__ = [
    "Model",
    "empty_model",
    "load",
    "load_method",
    "load_weights",
    "method_tensors",
    "open_run",
    "ready",
]


@dataclass(repr=False)
class Model:
    """A trained method, and the task that describes its raw inputs.

    Attributes:
        config: Configuration of the run.
        task: Shape, type and classes of the inputs.
        method: The method, with its weights.
        device: Device of the weights.
        bf16: Whether convolutions and products run in bf16.
        folder: Folder of the run; the current one for a model that belongs to none.
    """

    config: RunConfig
    task: Task
    method: Method
    device: torch.device
    bf16: bool
    folder: Path = Path()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.task.class_names

    def __repr__(self) -> str:
        """Return the recipe, the data, and the accuracy if the run was evaluated."""
        c, results = self.config, self.results
        known = f", accuracy {results['accuracy']:.2f} %" if results else ""
        return (
            f"<noprop.Model {c.recipe}: {c.method.name} on {printable(c.data.dataset)}, "
            f"{self.task.num_classes} classes{known}, in {printable(self.folder)}>"
        )

    @property
    def results(self) -> dict[str, Any] | None:
        """What the run's evaluation found; None if there is none.

        ``accuracy`` (percent) and ``log_loss`` (nats) are those of the default prediction, on the
        test part; ``training`` has times in seconds. See :func:`noprop.evaluate.evaluate` for the
        others.
        """
        if not (self.folder / "evaluation.json").is_file():
            return None
        results = read_evaluation(self.folder)
        best = results["modes"][results["default"]]
        return {"accuracy": best["accuracy"], "log_loss": best.get("log_loss"), **results}

    @property
    def model(self) -> "Model":
        """The model itself, which was an attribute of the object that calls returned."""
        return self

    def predict(
        self,
        x: Tensor | NDArray[Any],
        *,
        samples: int | None = None,
        noise: bool | None = None,
        average: str | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return class probabilities, shape (N, m), on the CPU.

        Args:
            x: Raw inputs of the kind that the run was trained on: images (N, C, H, W), (N, H, W) or
                (N, H, W, C), uint8 or floats in 0..1, or features (N, …), which become float32.
                With ``data.features`` images of any size, or the features of the frozen network.
            samples: Number K of chains to average; the run's ``evaluation.samples`` unless given.
                1 with ``average="readout"`` is the paper's single run, a sample from p(y|x).
            noise: Whether chains draw noise; the mean chain does not. The default is True if
                ``samples`` or ``average="readout"`` is given, else the better one for the method.
            average: ``path``, weighted as fitted on the validation part, or ``readout``. The
                default is ``path`` where the method has one.
            seed: Seed of the chains.

        Raises:
            DataError: If ``x`` has another shape or type than the training data, or is not finite.
            ConfigError: If ``samples`` is not in 1..1000, or the method does not have the average.
            TrainingError: If the predictions are not finite.

        Example:
            >>> import noprop
            >>> model = noprop.load("runs/digits-dt")
            >>> x = model.examples("test").x[:4]  # uint8, shape (4, 1, 8, 8)
            >>> model.predict(x).shape
            torch.Size([4, 10])
            >>> one_chain = model.predict(x, samples=1, average="readout")  # the paper's protocol
        """
        if noise is None:
            chains_wanted = samples is not None or average == "readout"
            noise = self.method.noise_by_default or chains_wanted
        if samples is None:
            samples = self.config.evaluation.samples
        try:
            self.method.check(samples, average)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if samples > MAX_SAMPLES:
            raise ConfigError(f"samples must be at most {MAX_SAMPLES}, got {samples}")
        x = raw_inputs(x, self.task, self.config.data.features)

        def answer(chunk: tuple[int, Tensor]) -> Tensor:
            index, raw = chunk
            batch = inputs(self, raw)
            prediction = self.method.predict(
                batch,
                generator(seed, "predict", index, device=self.device),
                samples=samples,
                noise=noise,
                average=average,
                prepared=prepare(self, batch),
            )
            check_finite(self, prediction.probabilities)
            return prediction.probabilities.cpu()

        if len(x) == 0:
            return torch.empty(0, self.task.num_classes)
        chunks = list(enumerate(x.split(self.config.evaluation.batch_size)))
        one_at_a_time = has_own_code(self)
        return torch.cat(map_in_threads(answer, chunks, self.device, one_at_a_time=one_at_a_time))

    def predict_labels(self, x: Tensor | NDArray[Any], **options: Any) -> list[str]:
        """Return the name of the likeliest class of each input; see :meth:`predict`."""
        return [self.class_names[label] for label in self.predict(x, **options).argmax(dim=1)]

    def evaluate(
        self,
        data_dir: Path | str | None = None,
        part: str = "test",
        *,
        emit: Emit = print_nothing,
    ) -> dict[str, Any]:
        """Evaluate on a part of the run's own data; see :func:`noprop.evaluate.evaluate`.

        Args:
            data_dir: First folder in which to look for the data.
            part: ``test``, ``validation`` or ``train``.
            emit: Called with :class:`~noprop.training.events.Evaluating`.

        Raises:
            ConfigError: If the part does not exist or is empty.
        """
        if part not in ("test", "validation", "train"):
            raise ConfigError(f"part must be test, validation or train, got {part!r}")
        examples = self.examples(part, data_dir)
        if len(examples) == 0:
            raise ConfigError(f"part: the {part} part of {self.config.data.dataset} is empty")
        emit(Evaluating(text=f"{len(examples):,} {part} examples"))
        return evaluate(self, examples, emit=emit) | {"part": part}

    def examples(self, part: str, data_dir: Path | str | None = None) -> Examples:
        """Load a part of the run's own data again.

        Raises:
            DataError: If it is missing, or differs from the training data in shape or classes.
        """
        data = load_data(self.config, Path(data_dir) if data_dir else None)
        check_same_data(self.config.data.dataset, data.task, self.task, self.folder)
        return getattr(data, part)

    def save(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``model.json``, and ``config.toml`` unless it exists.

        :func:`load` reads the folder, which is that of the run or any other.
        """
        folder = Path(folder)
        weights = self.method.path_weights
        about = {
            "format": 1,
            "shape": self.task.shape,
            "class_names": self.task.class_names,
            "dtype": self.task.dtype,
            "normalization": asdict(self.task.normalization),
            "path_weights": None if weights is None else weights.tolist(),
        }
        if self.task.columns:
            about["columns"] = self.task.columns
        header = {"format": 1, "config": to_mapping(self.config), "model": about}
        if not (folder / "config.toml").exists():  # makes the folder
            write_whole(folder / "config.toml", to_toml(self.config).encode())
        save_tensors(folder / "model.safetensors", method_tensors(self.method), header)
        write_whole(folder / "model.json", json.dumps(about, indent=1).encode())

    # -- the Hugging Face Hub ----------------------------------------------------------------------

    def save_pretrained(
        self, folder: Path | str, *, repository: str | None = None, license: str | None = None
    ) -> None:
        """Write the files of :meth:`save`, the evaluation, and a model card, ``README.md``.

        The name of a data set that is a path is written without its folders.

        Args:
            folder: The folder, which is not that of a run.
            repository: Name of the repository in the card; that of the folder unless given.
            license: License of the weights in the notation of the Hub, such as ``apache-2.0``.

        Raises:
            RunError: If the folder is that of a run, has files of these names and no model, or
                cannot be written.
        """
        folder = Path(folder)
        if (folder / "units").exists():
            raise RunError(f"{folder}: is a run folder; choose another")
        found = [file for file in FILES if (folder / file).exists()]
        if found and "model.json" not in found:
            raise RunError(f"{folder}: has {found[0]}, which is of no model; choose another folder")
        results = read_evaluation(self.folder) if self.results is not None else None
        name = published_name(self.config.data.dataset)
        published = dataclasses.replace(self, config=replace(self.config, {"data.dataset": name}))
        card = model_card(published, repository or folder.name, license)
        for file in found:
            (folder / file).unlink()
        published.save(folder)
        if results is not None:
            text = json.dumps(results, indent=1) + "\n"
            write_whole(folder / "evaluation.json", text.encode())
        write_whole(folder / "README.md", card.encode())

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        license: str | None = None,
        message: str = "Upload a model of noprop",
    ) -> str:
        """Upload the model with its card to the Hugging Face Hub, and return its address.

        See :func:`noprop.hub.upload` and :meth:`save_pretrained` for the arguments. It needs
        ``pip install 'noprop[hub]'``.

        Raises:
            RunError: If the repository cannot be written.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, repository=repository, license=license)
            how = {"private": private, "token": token, "message": message}
            return upload(Path(folder), repository, **how)

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | None = None,
        encoder: EncoderFactory | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> "Model":
        """Load a model from a folder, or from a repository of the Hugging Face Hub.

        Nothing in it is executed. See :func:`load` and :func:`noprop.hub.download` for the
        arguments.

        Args:
            name: A folder, or ``OWNER/NAME`` of a repository, which needs
                ``pip install 'noprop[hub]'``.
            revision: Branch, tag or commit of the repository.
            token: Token of a private repository.
            device: As for :func:`load`.
            encoder: As for :func:`load`; a file never names code.
            overrides: As for :func:`load`.

        Raises:
            RunError: If there is no such model, or its files are damaged.
        """
        folder = Path(name) if Path(name).is_dir() else download(str(name), revision, token)
        return load(folder, device=device or "auto", encoder=encoder, overrides=overrides)


def open_run(folder: Path) -> RunConfig:
    """Return the configuration of a run folder.

    Raises:
        RunError: If the folder is not a run, or holds links or special files.
    """
    check_utf8_name(folder)
    try:
        os.lstat(folder / "config.toml")
    except (FileNotFoundError, NotADirectoryError):
        what = "it has no config.toml" if folder.is_dir() else "it does not exist"
        raise RunError(f"{folder}: is not a run folder: {what}{_near_run(folder)}") from None
    check_folder(folder)  # only a run: other folders may hold links, and be large
    return from_toml(folder / "config.toml")


def _near_run(folder: Path) -> str:
    """Return a hint with the run of a similar name next to a folder, or else in ``runs``."""
    for place in (folder.parent, Path("runs")):
        names = [path.parent.name for path in place.glob("*/config.toml")]
        if near := difflib.get_close_matches(folder.name, names, n=1, cutoff=0.4):
            return f"; did you mean {place / near[0]}?"
    return ""


def load(
    folder: Path | str,
    *,
    device: str | None = None,
    encoder: EncoderFactory | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Load the model of a finished run. Nothing in the folder is executed.

    Args:
        folder: Folder of the run.
        device: Device to load it on; the one it was trained on unless given.
        encoder: The user's own encoder, if it was trained with one; a run never names code.
        overrides: New values of :func:`~noprop.config.inference_fields`, such as
            ``{"method.steps": 100}`` of CT and FM. If they change the number of steps that the path
            average weights, its fitted weights are replaced by uniform ones.

    Raises:
        RunError: If the folder is not a run, or its training has not finished.
        ConfigError: If a field cannot change after training.

    Example:
        >>> import noprop
        >>> model = noprop.load("runs/digits-dt")
        >>> model.task.shape, model.class_names[:3]
        ((1, 8, 8), ('0', '1', '2'))
    """
    folder = Path(folder)
    config = open_run(folder)
    if config.method.has_own_code:
        check_encoder(folder, encoder)
    path, weights_path = folder / "model.json", folder / "model.safetensors"
    if not path.exists():
        raise RunError(
            f"{folder}: training has not finished; resume it with noprop train --resume {folder}"
        )
    about = read_object(path)
    try:
        check_description(about)
        normal = Normalization(*(tuple(about["normalization"][k]) for k in ("mean", "std")))
        shape, names = tuple(about["shape"]), tuple(about["class_names"])
        task = Task(shape, names, normal, about["dtype"], tuple(about.get("columns", ())))
        weights = None if about["path_weights"] is None else torch.tensor(about["path_weights"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    check_trained_with(config, about, weights_path)
    if device or config.train.device.startswith(("cuda", "mps")):
        wanted = device or _still_here(config.train.device)
        config = replace(config, {"train.device": wanted})
    model = empty_model(config, task, encoder, folder)
    load_weights(model, load_tensors(weights_path)[0], weights_path)
    if trouble := misfit(weights, model.method.path_weights):
        raise RunError(f"{path}: is damaged (path_weights {trouble})")
    model.method.path_weights = weights
    return _read_otherwise(model, overrides, encoder, path) if overrides else model


def _still_here(device: str) -> str:
    """Return the device that a model was trained on, or ``auto`` on a machine without it."""
    present = torch.cuda.is_available() if device.startswith("cuda") else False
    return device if present else "auto"


def _read_otherwise(
    model: Model, overrides: Mapping[str, Any], encoder: EncoderFactory | None, source: Path
) -> Model:
    """Return a model with the same weights and other settings of inference."""
    free = inference_fields(model.config)
    for name in overrides:
        if name not in free:
            method = model.config.method
            known = not name.startswith("method.") or hasattr(method, name[7:])
            why = "cannot change after training" if known else f"is not a field of {method.name}"
            raise ConfigError(f"{name}: {why}; these can: {', '.join(free)}")
    other = empty_model(replace(model.config, overrides), model.task, encoder, model.folder)
    load_weights(other, method_tensors(model.method), source)
    fitted, uniform = model.method.path_weights, other.method.path_weights
    if fitted is not None and uniform is not None and fitted.shape == uniform.shape:
        other.method.path_weights = fitted
    return other


def method_tensors(method: Method) -> dict[str, Tensor]:
    """Return the weights and statistics of a method by name, as a file of a model has them."""
    tensors = flatten("shared", method.shared.state_dict())
    for unit in method.units:
        tensors |= flatten(f"{unit.name}/module", unit.module.state_dict())
    return tensors


def empty_model(
    config: RunConfig,
    task: Task,
    encoder: EncoderFactory | None = None,
    folder: Path = Path(),
) -> Model:
    """Build the method of a configuration, without loading weights."""
    device = choose_device(config.train.device)
    embedding = build_embedding(config, task, None)
    method = build_method(config, task, embedding, factory=encoder)
    return Model(config, task, method, device, use_bf16(config.train.precision, device), folder)


def load_weights(model: Model, tensors: dict[str, Any], source: Path) -> None:
    """Load weights into a model, and make it ready to predict on its device.

    Raises:
        RunError: If they are of another architecture; the message names ``source``.
    """
    load_method(model.method, tensors, source)
    ready(model)


def load_method(method: Method, tensors: Mapping[str, Any], source: Path | str) -> None:
    """Load what :func:`method_tensors` returned into a method.

    Raises:
        RunError: If the tensors are of another architecture; the message names ``source``.
    """
    if unused := sorted(tensors.keys() - method_tensors(method).keys()):
        raise RunError(
            f"{source}: holds the weights of another architecture: config.toml has no {unused[0]}"
        )
    try:
        method.shared.load_state_dict(unflatten("shared", tensors))
        for unit in method.units:
            unit.module.load_state_dict(unflatten(f"{unit.name}/module", tensors))
    except (RuntimeError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise RunError(f"{source}: holds the weights of another architecture: {first}") from None


def ready(model: Model) -> None:
    """Move a model's modules to its device and memory format, and to evaluation mode."""
    for module in (model.method.shared, *(u.module for u in model.method.units)):
        module.to(model.device).eval()
        if model.config.train.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
