"""Labels of any kind to 0..m-1: whole numbers that start anywhere, and text.

The classes are the different labels of the training part, in ascending order, unless their names
are given. Test labels are encoded with the classes of the training part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from noprop.data.arrays import MAX_CLASSES, MAX_NAME_LENGTH
from noprop.errors import DataError

__all__ = ["Classes", "find_classes"]

LARGEST_WHOLE = 2**53  # floats above it have no digits for units


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        values: Label of each class as it stands in the data, whole numbers or text.
        names: Name of each class.
    """

    values: tuple[int | str, ...]
    names: tuple[str, ...]

    def encode(self, place: str, key: str, labels: np.ndarray) -> Int64[Tensor, " n"]:
        """Return labels as 0..m-1.

        Args:
            place: File of the labels, for messages.
            key: Name of the labels, for messages.
            labels: The labels, shape (N,).

        Raises:
            DataError: If one is neither a whole number nor text, or of no class.
        """
        distinct, which = np.unique(_plain(place, key, labels), return_inverse=True)
        code_of = {value: code for code, value in enumerate(self.values)}
        codes = []
        for value in _texts(place, key, distinct):
            if value not in code_of:
                raise DataError(
                    f"{place}: {key} has the label {_shown(value)}, which is none of the training "
                    f"classes {_some(self.names)}"
                )
            codes.append(code_of[value])
        return torch.tensor(codes, dtype=torch.int64)[torch.from_numpy(which.reshape(-1))]


def find_classes(
    place: str, key: str, labels: np.ndarray, names: np.ndarray | Sequence[str] | None = None
) -> Classes:
    """Return the classes of the labels of a training part.

    Args:
        place: File of the labels, for messages.
        key: Name of the labels, for messages.
        labels: Whole numbers of any type, or text, shape (N,).
        names: Names of the classes. Labels 0..m-1 are positions in them, and labels that are text
            are among them. Other numbers have names in ascending order, one for each.

    Raises:
        DataError: If labels are of another shape or type, or do not agree with the names.
    """
    distinct = np.unique(_plain(place, key, labels))
    if len(distinct) > MAX_CLASSES:
        raise DataError(
            f"{place}: {key} has {len(distinct)} different labels, wanted 2 to {MAX_CLASSES:,} "
            "classes"
        )
    values = tuple(_texts(place, key, distinct))
    if names is None:
        return Classes(values, tuple(map(str, values)))
    known = _names(place, names)
    if isinstance(values[0], str):
        if strange := [value for value in values if value not in known]:
            raise DataError(f"{place}: {key} has the label {_shown(strange[0])}, which is not in "
                            f"class_names: {_some(known)}")  # fmt: skip
        return Classes(known, known)
    low, high = int(distinct[0]), int(distinct[-1])
    if low >= 0 and high < len(known):
        return Classes(tuple(range(len(known))), known)
    if len(values) == len(known):
        return Classes(values, known)
    raise DataError(
        f"{place}: class_names has {len(known)} names, but {key} has {len(values)} different "
        f"labels from {low} to {high}"
    )


def _plain(place: str, key: str, labels: np.ndarray) -> np.ndarray:
    """Return labels as whole numbers or as text of NumPy."""
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.flat):
        # Text of NumPy has one length: a single long label would take as much for every other.
        if (longest := max(map(len, labels.flat), default=0)) > MAX_NAME_LENGTH:
            raise DataError(
                f"{place}: {key} has a label of {longest} characters, wanted at most "
                f"{MAX_NAME_LENGTH}"
            )
        labels = labels.astype(np.str_)
    if labels.ndim != 1 or labels.dtype.kind not in "biufUS":
        raise DataError(
            f"{place}: {key} is {labels.dtype} of shape {labels.shape}, "
            f"wanted whole numbers or text of shape (N,), one label per example"
        )
    if not len(labels):
        raise DataError(f"{place}: {key} is empty, wanted one label per example")
    if labels.dtype.kind != "f":
        return labels
    whole = (labels == np.rint(labels)) & (np.abs(labels) <= LARGEST_WHOLE)  # not of NaN
    if not whole.all():
        raise DataError(
            f"{place}: {key} has the label {labels[~whole][0]}, wanted whole numbers or text"
        )
    return labels.astype(np.int64)


def _texts(place: str, key: str, values: np.ndarray) -> list[Any]:
    """Return values as objects of Python; bytes are UTF-8.

    Raises:
        DataError: If one is no text that can be printed and stored.
    """
    try:
        found = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
        for value in found:
            str(value).encode()
    except ValueError as error:
        raise DataError(f"{place}: {key} has a label that is no valid text: {error}") from None
    return found


def _names(place: str, names: np.ndarray | Sequence[str]) -> tuple[str, ...]:
    array = np.asarray(names)
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(
            f"{place}: class_names is {array.dtype} of shape {array.shape}, wanted text of shape "
            "(m,), one name per class"
        )
    found = tuple(_texts(place, "class_names", array))
    if len(set(found)) < len(found):
        raise DataError(f"{place}: class_names has a name twice")
    return found


def _shown(value: int | str) -> str:
    return repr(value[:40]) if isinstance(value, str) else str(value)


def _some(names: Sequence[str]) -> str:
    """Return the first few names, long ones cut, and their number if there are more."""
    shown = ", ".join(name[:40] for name in names[:10])
    return shown + (f", … ({len(names)})" if len(names) > 10 else "")
