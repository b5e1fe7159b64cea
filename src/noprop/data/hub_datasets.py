"""Data sets of the Hugging Face Hub, and folders in the formats of the package ``datasets``.

A name is ``hf:OWNER/NAME`` or ``hf:FOLDER``. From version 4 that package executes no code of a
data set, so an earlier one is refused. Images are read by :mod:`noprop.data.images`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np

from noprop.data.arrays import Dataset
from noprop.data.folders import read_class_folders
from noprop.data.formats import read_bytes
from noprop.data.labels import Classes, find_classes
from noprop.data.numpy_files import to_dataset
from noprop.data.table_files import LABEL_COLUMNS
from noprop.errors import DataError, import_extra

__all__ = ["PREFIX", "absolute_place", "read_hub_dataset"]

PREFIX = "hf:"
LEAST_VERSION = 4
TEST_PARTS = ("test", "validation", "val")  # the first one is the test part


def absolute_place(name: str) -> str:
    """Return a name that is valid in any working folder: a folder becomes absolute."""
    place = name.removeprefix(PREFIX)
    is_folder = place[:1] in (".", "/", "~") or Path(place).is_dir()
    return f"{PREFIX}{Path(place).expanduser().absolute()}" if is_folder else name


def read_hub_dataset(
    name: str, image_size: int | None = None, color: str = "auto", label: str | None = None
) -> Dataset:
    """Read a data set by the package ``datasets``, which downloads and caches it.

    The part ``train`` is trained on; ``test``, else ``validation``, is the test part, or one fifth
    if there is neither. Examples are the column of images, if there is one, else all columns of
    numbers.

    Args:
        name: The name, with its prefix.
        image_size: Side in pixels to which images are resized; with None all must have one size.
        color: "grey", "rgb", or "auto", which is grey if every image is.
        label: Column of the labels; label, labels, target, class or y unless given.

    Raises:
        DataError: If ``datasets`` is missing or older than version 4, or there is no such data set,
            or it has no such columns.
    """
    datasets = _datasets(name)
    parts = _load(datasets, name)
    features = parts["train"].features
    key = _label_column(name, features, label)
    images = [n for n, kind in features.items() if isinstance(kind, datasets.Image) and n != key]
    if len(images) > 1:
        raise DataError(f"{name}: has {len(images)} columns of images: {', '.join(images)}")
    labels = {n: np.asarray(_columns(part, [key])[key]) for n, part in parts.items()}
    class_names = getattr(features[key], "names", None)
    if images:
        classes = find_classes(name, key, labels["train"], class_names)
        return _images(datasets, name, parts, images[0], classes, labels, image_size, color)
    if image_size is not None or color != "auto":
        raise DataError(f"{name}: image_size and color are for images, and it has none")
    names = [n for n in features if n != key]
    arrays = {f"x of {n}": _numbers(name, part, names) for n, part in parts.items()}
    arrays |= {f"{key} of {n}": value for n, value in labels.items()}
    keys = [f"{kind} of {n}" for n in parts for kind in ("x", key)]
    names = names if arrays[keys[0]].shape[1:] == (len(names),) else []
    return replace(to_dataset(name, name, arrays, keys, class_names), columns=tuple(names))


def _datasets(name: str) -> ModuleType:
    datasets = import_extra("datasets", "datasets", f"{name}: needs", DataError)
    if int(datasets.__version__.split(".")[0]) < LEAST_VERSION:
        raise DataError(
            f"{name}: needs datasets {LEAST_VERSION} or later, because earlier ones run code of a "
            f"data set; {datasets.__version__} is installed"
        )
    return datasets


def _load(datasets: ModuleType, name: str) -> dict[str, Any]:
    """Return the training part, and the test part if there is one."""
    place = absolute_place(name).removeprefix(PREFIX)
    saved = any((Path(place) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    datasets.disable_progress_bars()
    try:
        found = (datasets.load_from_disk if saved else datasets.load_dataset)(place)
    except Exception as error:  # of the network, a file, or a name that does not exist
        words = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: cannot be read: {words or type(error).__name__}") from None
    parts = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    if "train" not in parts:
        raise DataError(f"{name}: has the parts {', '.join(parts)}, wanted train")
    test = next((n for n in TEST_PARTS if n in parts), None)
    return {n: parts[n] for n in ("train", test) if n}


def _label_column(name: str, features: Mapping[str, Any], label: str | None) -> str:
    known = LABEL_COLUMNS if label is None else (label,)
    found = [n for n in features if n == label or n.lower() in known]
    if len(found) != 1:
        raise DataError(
            f"{name}: wanted one column {' or '.join(known)}, found {', '.join(found) or 'none'} "
            f"in {', '.join(features)}; give label"
        )
    return found[0]


def _columns(part: Any, names: list[str]) -> Mapping[str, Any]:
    return part.select_columns(names).with_format("numpy")[:]


def _numbers(name: str, part: Any, columns: list[str]) -> np.ndarray:
    """Return columns of single numbers as (N, F), or the only column in the shape that it has."""
    values = {n: np.asarray(value) for n, value in _columns(part, columns).items()}
    for n, value in values.items():
        if value.dtype.kind not in "biuf" or (value.ndim > 1 and len(columns) > 1):
            raise DataError(
                f"{name}: the column {n} has no single numbers; leave it out, or give another label"
            )
    if not values:
        raise DataError(f"{name}: has no column besides the labels")
    arrays = list(values.values())
    return np.stack(arrays, axis=1).astype(np.float32) if arrays[0].ndim == 1 else arrays[0]


def _images(
    datasets: ModuleType,
    name: str,
    parts: Mapping[str, Any],
    column: str,
    classes: Classes,
    labels: Mapping[str, np.ndarray],
    image_size: int | None,
    color: str,
) -> Dataset:
    """Write the images as class folders, which have one reader with all its checks."""
    with TemporaryDirectory() as folder:
        for n, part in parts.items():
            place = Path(folder) / n if len(parts) > 1 else Path(folder)
            place = place.with_name("test") if n in TEST_PARTS else place
            codes = classes.encode(name, "label", labels[n]).tolist()
            if n == "train" and len(set(codes)) < len(classes.names):
                missing = min(set(range(len(classes.names))) - set(codes))
                raise DataError(f"{name}: {classes.names[missing]} has no training example")
            rows = part.select_columns([column]).cast_column(column, datasets.Image(decode=False))
            for i, (row, code) in enumerate(zip(rows, codes, strict=True)):
                # Numbers in place of names, which may have a slash in them.
                file = place / f"{code:05}" / f"{i:08}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(_bytes(name, row[column]))
        try:
            dataset = read_class_folders(Path(folder), image_size, color)
        except DataError as error:
            raise DataError(str(error).replace(folder, name)) from None
    return replace(dataset, name=name, class_names=classes.names)


def _bytes(name: str, image: Mapping[str, Any] | None) -> bytes:
    if image and image.get("bytes"):
        return image["bytes"]
    if image and image.get("path"):
        return read_bytes(Path(image["path"]))
    raise DataError(f"{name}: an image is missing")
