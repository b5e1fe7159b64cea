"""Questions to a model, and its answers: K chains, and one of them step by step."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from noprop.data import Examples
from noprop.data.drawings import as_digit, is_digits
from noprop.data.features import features_of, input_shape
from noprop.data.images import read_image
from noprop.errors import DataError
from noprop.evaluate import check_finite, inputs, prepare
from noprop.methods.base import Prediction
from noprop.model import Model
from noprop.randomness import generator
from noprop.report.animation import Frame, levels_of
from noprop.report.chain import check_example, predicts_in_steps

__all__ = [
    "MAX_CHAINS",
    "MAX_IMAGE",
    "Answer",
    "Question",
    "answer",
    "from_example",
    "from_image",
    "from_numbers",
    "image_shape",
    "trained_on_digits",
]

MAX_CHAINS = 200
MAX_IMAGE = 10 << 20  # bytes of an image file
TOO_LARGE = "too large"  # what canvas.js sends in place of a larger one
ADDRESS = re.compile(r"data:[\w.+/-]*;base64,")
DIGITS = ("digits", "mnist")  # data sets whose digits were cropped, scaled and centred


@dataclass(frozen=True)
class Question:
    """An input of the model.

    Attributes:
        raw: The input as the model takes it, without the axis of a batch.
        picture: The image that is shown for it; None for numbers.
        label: The true class, if it is known.
        name: What the input is, such as ``test example 3``.
        source: The address of the image that it was made from, if any.
    """

    raw: Shaped[Tensor, "..."]
    picture: Shaped[Tensor, "c h w"] | None
    label: int | None
    name: str
    source: str = ""


@dataclass(frozen=True)
class Answer:
    """What the model answers to a question.

    Attributes:
        question: The question.
        probabilities: What :meth:`Model.predict` returns with the same chains and seed, shape (m,).
        ends: Probabilities at the end of each chain, shape (K, m).
        average: What the probabilities are, in words.
        levels: A frame for each level of the first chain; none of a method that answers once.
        prediction: The prediction itself.
    """

    question: Question
    probabilities: Float[Tensor, " classes"]
    ends: Float[Tensor, "chains classes"]
    average: str
    levels: Sequence[Frame]
    prediction: Prediction

    @property
    def votes(self) -> Int64[Tensor, " classes"]:
        """Number of chains that end with each class."""
        return self.ends.argmax(dim=1).bincount(minlength=self.ends.shape[1])


def image_shape(model: Model) -> tuple[int, ...] | None:
    """Return the shape (C, H, W) of the images that a model takes; None if it takes none."""
    if name := model.config.data.features:
        return input_shape(name)
    shape = model.task.shape
    images = len(shape) == 3 and shape[0] in (1, 3) and model.task.dtype == "uint8"
    return shape if images else None


def trained_on_digits(model: Model) -> bool:
    """Whether the training data are digits that were cropped, scaled and centred."""
    return model.config.data.dataset in DIGITS and is_digits(model.task.shape)


def from_image(model: Model, address: str, *, digit: bool) -> Question:
    """Return the question of an image: resized, or as the digits of MNIST were made.

    Args:
        model: The model, which takes images.
        address: The bytes of an image file, as a ``data:`` address in base64.
        digit: Whether to crop, scale and centre it as a digit.

    Raises:
        DataError: If it is no image, too large, or empty.
    """
    shape = image_shape(model)
    assert shape is not None, "a model of tables takes no image"
    channels, height, width = shape
    with TemporaryDirectory() as folder:
        file = Path(folder) / "image"
        file.write_bytes(_bytes_of(address))
        try:
            if digit:
                image = as_digit(read_image(file, None, 1), width)
            else:
                image = read_image(file, (height, width), channels)
        except DataError as error:
            raise DataError(str(error).replace(str(file), "image")) from None
    name = model.config.data.features
    raw = features_of(name, image[None])[0] if name else image
    return Question(raw, image, None, "your image", address)


def _bytes_of(address: str) -> bytes:
    if address == TOO_LARGE or len(address) > MAX_IMAGE * 4 // 3 + 100:
        raise DataError(f"image: has more than {MAX_IMAGE >> 20} MiB")
    head = ADDRESS.match(address)
    if head is None:
        raise DataError("image: wanted an address of the form data:…;base64,…")
    try:
        return base64.b64decode(address[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image: is no base64: {error}") from None


def from_example(examples: Examples, index: int) -> Question:
    """Return the question of a test example.

    Raises:
        ConfigError: If there is no such example.
    """
    check_example(examples, index)
    raw = examples.x[index].cpu()
    picture = raw if raw.ndim == 3 and raw.shape[0] in (1, 3) else None
    return Question(raw, picture, int(examples.y[index]), f"test example {index}")


def from_numbers(
    model: Model, values: Sequence[float | None], label: int | None = None
) -> Question:
    """Return the question of a row of a table.

    Raises:
        DataError: If a value is missing, not finite, or no pixel where the model takes pixels.
    """
    names = model.task.columns or tuple(f"feature {i}" for i in range(len(values)))
    for name, value in zip(names, values, strict=True):
        if value is None or not abs(value) <= torch.finfo(torch.float32).max:
            raise DataError(f"{name}: wanted a number, got {value}")
        if model.task.dtype == "uint8" and not (value == int(value) and 0 <= value <= 255):
            raise DataError(f"{name}: wanted a whole number in 0..255, got {value}")
    raw = torch.tensor(values, dtype=getattr(torch, model.task.dtype))
    return Question(raw, None, label, "your numbers")


def answer(model: Model, question: Question, *, samples: int, noise: bool, seed: int) -> Answer:
    """Ask the model, which answers as :meth:`Model.predict` does.

    Args:
        model: The model.
        question: Its input.
        samples: Number K of chains, 1 to 200.
        noise: Whether the chains draw noise; without it one mean chain is run.
        seed: Seed of the chains.

    Raises:
        DataError: If the number of chains is out of range.
        TrainingError: If the prediction is not finite.
    """
    if not 1 <= samples <= MAX_CHAINS:
        raise DataError(f"chains: wanted 1 to {MAX_CHAINS}, got {samples}")
    x = inputs(model, question.raw[None])
    p = model.method.predict(
        x,
        generator(seed, "predict", 0, device=model.device),
        samples=samples,
        noise=noise,
        average=None,
        prepared=prepare(model, x),
    )
    check_finite(model, p.probabilities)
    ends = p.ends[:, 0].float().cpu()
    levels = levels_of(model, p) if predicts_in_steps(model) else []
    average = "ensemble over steps (path average)" if p.path is not None else "mean of the ends"
    return Answer(question, p.probabilities[0].float().cpu(), ends, average, levels, p)
