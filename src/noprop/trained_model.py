"""The model of a finished run: prediction, and evaluation on the run's own data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from noprop.build import load_data
from noprop.config import MAX_SAMPLES
from noprop.data import Examples
from noprop.errors import ConfigError, DataError
from noprop.evaluate import check_finite, evaluate, has_own_code, inputs, prepare
from noprop.machine import map_in_threads
from noprop.model import Model
from noprop.randomness import generator

__all__ = ["TrainedModel"]


class TrainedModel:
    """The model of a finished run.

    Attributes:
        folder: Folder of the run.
        config: Configuration of the run.
        class_names: Names of the labels.
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
        """Return class probabilities, shape (N, m), on the CPU.

        Args:
            x: Raw inputs of the kind that the run was trained on: uint8 images (N, C, H, W), or
                float32 features (N, …).
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
        """
        if noise is None:
            chains_wanted = samples is not None or average == "readout"
            noise = self.model.method.noise_by_default or chains_wanted
        if samples is None:
            samples = self.config.evaluation.samples
        try:
            self.model.method.check(samples, average)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if samples > MAX_SAMPLES:
            raise ConfigError(f"samples must be at most {MAX_SAMPLES}, got {samples}")
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
            check_finite(self.model, prediction.probabilities)
            return prediction.probabilities.cpu()

        if len(x) == 0:
            return torch.empty(0, self.model.task.num_classes)
        chunks = list(enumerate(x.split(self.config.evaluation.batch_size)))
        one_at_a_time = has_own_code(self.model)
        return torch.cat(
            map_in_threads(answer, chunks, self.model.device, one_at_a_time=one_at_a_time)
        )

    def evaluate(self, data_dir: Path | None = None, part: str = "test") -> dict[str, Any]:
        """Evaluate on a part of the run's own data; see :func:`noprop.evaluate.evaluate`.

        Args:
            data_dir: First folder in which to look for the data.
            part: ``test``, ``validation`` or ``train``.

        Raises:
            ConfigError: If the part does not exist or is empty.
        """
        if part not in ("test", "validation", "train"):
            raise ConfigError(f"part must be test, validation or train, got {part!r}")
        examples = self.examples(part, data_dir)
        if len(examples) == 0:
            raise ConfigError(f"part: the {part} part of {self.config.data.dataset} is empty")
        return evaluate(self.model, examples) | {"part": part}

    def examples(self, part: str, data_dir: Path | None = None) -> Examples:
        """Load a part of the run's own data again.

        Raises:
            DataError: If it is missing, or differs from the training data in shape or classes.
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
    """Return the first few names, and their number if there are more."""
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
