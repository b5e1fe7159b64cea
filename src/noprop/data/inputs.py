"""The inputs of a prediction: images, folders of them, arrays, tables, and standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from noprop.data.given import as_pixels
from noprop.data.images import IMAGE_SUFFIXES, read_images
from noprop.data.numpy_files import (
    array_names,
    find_inputs,
    looks_like_pixels,
    name_some,
    read_arrays,
    to_inputs,
)
from noprop.data.table_files import TABLE_SUFFIXES, read_csv, read_table_file, table_inputs
from noprop.errors import DataError

__all__ = ["STANDARD_INPUT", "read_inputs"]

STANDARD_INPUT = Path("-")
MAX_STANDARD_INPUT = 1 << 30  # bytes


def read_inputs(
    files: Sequence[Path],
    shape: tuple[int, ...],
    *,
    columns: Sequence[str] = (),
    dtype: str = "uint8",
) -> tuple[list[str], Shaped[Tensor, "n ..."]]:
    """Read the inputs of a prediction.

    Images are resized and turned grey or to colour as the model wants; of a folder every image in
    it and in its subfolders is read. Arrays (of an ``.npz`` ``x``, ``X`` or ``data``, else
    ``x_test``) hold a batch of examples of the model's shape, laid out as for training; floats in
    0..1 are pixels for a model of pixels. A row of a table is an example, see
    :func:`~noprop.data.table_files.table_inputs`.

    Args:
        files: Files and folders, at least one; ``-`` is a table in CSV on standard input.
        shape: Shape of one example of the model, such as (1, 28, 28).
        columns: Names of the columns of a model that was trained on a table.
        dtype: Type of the model's inputs, ``uint8`` or ``float32``; tables and floats need it.

    Returns:
        A name for each example (the file; ``file[i]`` for those of arrays and tables) and the
        examples, uint8 (N, C, H, W) or float32 (N, ...).

    Raises:
        DataError: If a file cannot be read or holds other shapes, or files mix uint8 and float32.
    """
    if not files:
        raise DataError("no file to read was given")
    names: list[str] = []
    parts: list[Tensor] = []
    for path in files:
        if path == STANDARD_INPUT:
            frame = read_csv("standard input", _standard_input())
            parts.append(table_inputs("standard input", frame, shape, columns, dtype))
        elif path.is_dir():
            images = _images_in(path)
            parts.append(_read_images(images, shape))
            names += map(str, images)
        elif path.suffix.lower() in TABLE_SUFFIXES:
            frame = read_table_file(path)
            parts.append(table_inputs(str(path), frame, shape, columns, dtype))
        elif path.suffix.lower() in (".npy", ".npz"):
            parts.append(_read_array(path, shape, dtype))
        else:
            parts.append(_read_images([path], shape))
            names.append(str(path))
        if len(names) < sum(map(len, parts)):
            place = "stdin" if path == STANDARD_INPUT else path
            names += [f"{place}[{i}]" for i in range(len(parts[-1]))]
        if parts[-1].dtype != parts[0].dtype:
            raise DataError(
                f"{path}: holds {parts[-1].dtype} but {files[0]} holds {parts[0].dtype}; "
                f"give them separately"
            )
    return names, torch.cat(parts)


def _read_images(files: Sequence[Path], shape: tuple[int, ...]) -> Shaped[Tensor, "n ..."]:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{files[0]}: is no array; the model takes arrays of shape {shape}")
    return read_images(files, (shape[1], shape[2]), shape[0])


def _images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders by name, without hidden ones."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise DataError(f"{folder}: the folder has no image")
    return found


def _read_array(path: Path, shape: tuple[int, ...], dtype: str) -> Shaped[Tensor, "n ..."]:
    held = array_names(path)
    if (key := find_inputs(held)) is None:
        raise DataError(f"{path}: holds {name_some(held)}, wanted an array x or x_test")
    array = read_arrays(path, [key])[key]
    if dtype == "uint8" and looks_like_pixels(array):
        array = as_pixels(array)
    x = to_inputs(path, key, array)
    if tuple(x.shape[1:]) != shape:
        raise DataError(
            f"{path}: its examples have shape {tuple(x.shape[1:])}, the model takes {shape}"
        )
    return x


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(MAX_STANDARD_INPUT + 1)
    if len(data) > MAX_STANDARD_INPUT:
        raise DataError(f"standard input: has more than {MAX_STANDARD_INPUT >> 20} MiB")
    return data
