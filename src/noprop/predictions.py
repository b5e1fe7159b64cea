"""The answers of an evaluation: each example's label, prediction and probabilities, in a file.

An evaluation keeps the default prediction of its first inference run, so that a report can show
which examples were wrong without predicting them again. Twenty bytes an example, and the names of
files where each example has one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from noprop.errors import DamagedError
from noprop.tensor_files import load_tensors, save_tensors

__all__ = [
    "FILE",
    "TENSORS",
    "Predictions",
    "predictions_of",
    "read_predictions",
    "save_predictions",
]

FILE = "predictions.safetensors"  # in a run folder
INTEGERS = ("index", "y", "label")
TENSORS = (*INTEGERS, "confidence", "likelihood")
FILES = "files"


@dataclass(frozen=True)
class Predictions:
    """The answer for each example of a part of the data.

    Attributes:
        index: Index of the example in its part, shape (N,).
        y: Its label, shape (N,).
        label: The predicted label, the most probable one, shape (N,).
        confidence: Probability of the predicted label, shape (N,).
        likelihood: Probability of the true label, shape (N,).
        files: Name of each example, that of its file or its row of a table; else none.
    """

    index: Tensor  # no shapes in the annotations: they are checked where a file is read
    y: Tensor
    label: Tensor
    confidence: Tensor
    likelihood: Tensor
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def correct(self) -> Tensor:
        """Whether each prediction is right, shape (N,)."""
        return self.label == self.y

    def confusion(self, classes: int) -> Int64[Tensor, "true predicted"]:
        """Return how many examples of each class were predicted as each class, shape (m, m)."""
        pairs = self.y * classes + self.label
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def mistakes(self, at_most: int) -> Int64[Tensor, " mistakes"]:
        """Return the positions of the wrong predictions of greatest confidence, that one first."""
        wrong = (~self.correct).nonzero()[:, 0]
        order = self.confidence[wrong].argsort(descending=True, stable=True)
        return wrong[order[:at_most]]

    def name(self, position: int) -> str:
        """Return the name of an example: that of its file or row, or its index."""
        return self.files[position] if self.files else f"example {int(self.index[position])}"


def predictions_of(
    probabilities: Float[Tensor, "batch classes"], y: Int64[Tensor, " batch"]
) -> Predictions:
    """Return the answers of class probabilities for all the examples of a part."""
    p, y = probabilities.float().cpu(), y.cpu()
    confidence, label = p.max(dim=1)
    every = torch.arange(len(y))
    return Predictions(every, y, label, confidence, p[every, y])


def save_predictions(folder: Path, predictions: Predictions, part: str) -> None:
    """Write the answers for a part of the data in a run folder.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    tensors = {name: getattr(predictions, name) for name in TENSORS}
    tensors |= {name: tensors[name].to(torch.int32) for name in INTEGERS}
    if predictions.files:
        names = json.dumps(predictions.files).encode()
        tensors[FILES] = torch.frombuffer(bytearray(names), dtype=torch.uint8)
    save_tensors(folder / FILE, tensors, {"format": 1, "part": part})


def read_predictions(folder: Path, classes: int) -> tuple[Predictions, str] | None:
    """Return the stored answers of a run and the part of the data, or None if there are none.

    Args:
        folder: The run folder.
        classes: m, the number of classes of the model.

    Raises:
        DamagedError: If the file is not what :func:`save_predictions` wrote for such a model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors, about = load_tensors(path)
    try:
        found = {name: tensors[name] for name in TENSORS}
        _check(found, classes)
        files = _files_in(tensors[FILES], len(found["y"])) if FILES in tensors else ()
        part = about["part"]
        if part not in ("test", "validation", "train"):
            raise ValueError("it names no part of the data")
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    found |= {name: found[name].long() for name in INTEGERS}
    return Predictions(**found, files=files), part


def _files_in(encoded: Tensor, count: int) -> tuple[str, ...]:
    """Return names of files, which are stored as the bytes of their JSON.

    Raises:
        ValueError: If they are not as many names.
    """
    if encoded.dtype != torch.uint8 or encoded.ndim != 1:
        raise ValueError(f"{FILES} is {encoded.dtype} of shape {tuple(encoded.shape)}")
    names = json.loads(encoded.numpy().tobytes())
    if not isinstance(names, list) or len(names) != count:
        raise ValueError(f"{FILES} has no name for each of {count} examples")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{FILES} has a name that is no text")
    return tuple(names)


def _check(tensors: dict[str, Tensor], classes: int) -> None:
    """Check types, shapes and ranges.

    Raises:
        ValueError: If one is not that of a prediction.
    """
    for name, tensor in tensors.items():
        whole = name in INTEGERS
        dtype = torch.int32 if whole else torch.float32
        if tensor.dtype != dtype or tensor.ndim != 1 or len(tensor) != len(tensors["y"]):
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        most = classes - 1 if name in ("y", "label") else torch.inf if whole else 1 + 1e-4
        if not bool(((tensor >= 0) & (tensor <= most)).all()):  # NaN is refused as well
            raise ValueError(f"{name} has a value out of its range")
