"""Tables in CSV and Parquet files: a column of labels, and the others of numbers.

pandas reads CSV, and pyarrow Parquet; neither executes anything that a file holds. What a file can
take of memory is bounded before it is read, as for other files.
"""

import csv
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from noprop.data.arrays import Dataset
from noprop.data.formats import open_data
from noprop.data.numpy_files import name_some, to_dataset, to_inputs
from noprop.errors import DataError, import_extra
from noprop.files import may_unpack
from noprop.terminal import is_number

__all__ = ["TABLE_SUFFIXES", "read_csv", "read_table", "read_table_file", "table_inputs"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
LABEL_COLUMNS = ("label", "labels", "target", "class", "y")  # names in any case
SEPARATORS = (",", ";", "\t")
CELL_BYTES = 8  # of a number
MAX_HEADER_BYTES = 1 << 20


def read_table(path: Path, label: str | None = None) -> Dataset:
    """Read a data set from a table; the test part is one fifth, the same in every run.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file. The first line of a CSV file has the names
            of the columns; they are separated by commas, semicolons or tabs.
        label: Name of the column of the labels, whole numbers or text; unless given, the one that
            is called label, labels, target, class or y.

    Raises:
        DataError: If the file is damaged, there is no such column, or another is not of numbers.
    """
    frame = read_table_file(path)
    names = list(frame.columns)
    label = _label_column(path, names, label)
    columns = [name for name in names if name != label]
    if not columns:
        raise DataError(
            f"{path}: has no column but {name_some([label])}, wanted columns of numbers"
        )
    labels = f"column {name_some([label])}"
    arrays = {"x": _numbers(str(path), frame, columns), labels: _labels(path, frame[label], labels)}
    dataset = to_dataset(str(path), str(path), arrays, ["x", labels], rows=True)
    return replace(dataset, columns=tuple(columns))


def table_inputs(
    place: str, frame: Any, shape: tuple[int, ...], columns: Sequence[str], dtype: str
) -> Shaped[Tensor, "n ..."]:
    """Return the rows of a table as inputs of a model.

    Args:
        place: The source, for messages.
        frame: The table.
        shape: Shape of one input of the model.
        columns: Columns that the model was trained on, which are taken by name; others are not
            read. Without them every column is taken, in the table's order.
        dtype: Type of an input of the model, ``uint8`` pixels or ``float32`` features.

    Raises:
        DataError: If columns are missing or too many, or values are not inputs of the model.
    """
    names = list(frame.columns)
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"{place}: lacks the column {name_some(missing)} of the training data")
    if not columns and len(names) != math.prod(shape):
        size, wanted = math.prod(shape), f"{math.prod(shape)} numbers"
        if len(shape) == 3:
            wanted = f"images of shape {shape}: wanted image files, or a column for each of {size} "
            wanted += "pixels"
        raise DataError(f"{place}: has {len(names)} columns, the model takes {wanted}")
    values = _numbers(place, frame, columns or names)
    if dtype == "uint8":
        with np.errstate(invalid="ignore"):  # of infinity, which is found below
            pixels = values.astype(np.uint8)
        if (pixels != values).any():
            raise DataError(f"{place}: wanted whole numbers in 0..255, as the model takes pixels")
        values = pixels
    inputs = to_inputs(place, "the table", values)  # two axes: features, of pixels too
    return inputs.to(getattr(torch, dtype)).view(-1, *shape)


def read_table_file(path: Path) -> Any:
    """Return a table as a DataFrame, with rows and named columns that differ.

    Raises:
        DataError: If the file is no such table, or needs a package that is missing.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    with open_data(path) as file:
        data = file.read()
    return read_csv(str(path), data)


def read_csv(place: str, data: bytes) -> Any:
    """Return the table of a CSV file as a DataFrame; an empty cell is a missing value.

    Raises:
        DataError: If it is no table, or takes more than :func:`~noprop.files.may_unpack` allows.
    """
    pandas = _imported("pandas")
    head, separator = _header(place, data)
    lines = max(data.count(b"\n"), data.count(b"\r")) + 1
    # pandas fills short lines: a long header over a million empty ones would take all memory.
    _check_size(place, lines, len(head), len(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # of lines that are too long
        try:
            frame = pandas.read_csv(
                io.BytesIO(data),
                sep=separator,
                index_col=False,
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
                encoding="utf-8-sig",
            )
        except (ValueError, UnicodeError, OverflowError, pandas.errors.ParserWarning) as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{place}: not a readable CSV table: {why}") from error
    if list(frame.columns) != head:
        raise DataError(f"{place}: the names of the columns are not all in the first line")
    return _checked(place, frame)


def _header(place: str, data: bytes) -> tuple[list[str], str]:
    """Return the names in the first line of a CSV file, and the separator that it has most."""
    line = next(iter(data[:MAX_HEADER_BYTES].splitlines()), b"")
    try:
        text = line.decode("utf-8-sig")
        separator = max(SEPARATORS, key=text.count)
        head = next(csv.reader([text], delimiter=separator), [])
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{place}: not a readable CSV table: {error}") from error
    if not head:
        raise DataError(f"{place}: has no line of column names")
    if all(map(is_number, head)):
        raise DataError(f"{place}: the first line has numbers, wanted the names of the columns")
    return head, separator


def _read_parquet(path: Path) -> Any:
    parquet = _imported("pyarrow.parquet")
    pandas = _imported("pandas")
    with open_data(path) as file:
        try:
            table = parquet.ParquetFile(file)
            about, packed = table.metadata, path.stat().st_size
            _check_size(str(path), about.num_rows, about.num_columns, packed)
            groups = (about.row_group(i) for i in range(about.num_row_groups))
            unpacked = sum(group.total_byte_size for group in groups)
            if not may_unpack(unpacked, packed):
                raise DataError(
                    f"{path}: unpacks from {packed} bytes to {unpacked}: refused as a bomb"
                )
            if nested := [f.name for f in table.schema_arrow if f.type.num_fields]:
                raise DataError(f"{path}: column {name_some(nested)} is nested, wanted numbers")
            # Text is kept as positions in the different texts, so a long one is not copied.
            texts = [
                f.name for f in table.schema_arrow if str(f.type) in ("string", "large_string")
            ]
            file.seek(0)
            frame = parquet.ParquetFile(file, read_dictionary=texts).read()
            frame = frame.to_pandas(ignore_metadata=True)
        except DataError:
            raise
        except Exception as error:  # of pyarrow's own kinds, and OSError
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not a readable Parquet file: {why}") from error
    assert isinstance(frame, pandas.DataFrame)
    return _checked(str(path), frame)


def _check_size(place: str, rows: int, columns: int, packed: int) -> None:
    if not may_unpack(rows * columns * CELL_BYTES, packed):
        raise DataError(
            f"{place}: {rows} rows of {columns} columns from {packed} bytes: refused as a bomb"
        )


def _checked(place: str, frame: Any) -> Any:
    names = list(frame.columns)
    if not len(frame):
        raise DataError(f"{place}: has no rows")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise DataError(f"{place}: has the column {name_some(twice)} twice")
    return frame


def _label_column(path: Path, names: list[str], label: str | None) -> str:
    if label is not None:
        if label in names:
            return label
        raise DataError(f"{path}: has no column {label!r}, only {name_some(names)}")
    found = [name for name in names if name.lower() in LABEL_COLUMNS]
    if len(found) != 1:
        likely = name_some([names[-1], *names[:-1]])  # mostly the last, and some are not shown
        raise DataError(
            f"{path}: which column has the labels? Name it with --label (data.label), one of "
            f"{likely}"
        )
    return found[0]


def _numbers(place: str, frame: Any, columns: Sequence[str]) -> np.ndarray:
    """Return columns as an array, shape (N, F).

    Raises:
        DataError: If one is not of numbers, or has a missing value.
    """
    types = _imported("pandas").api.types
    for name in columns:
        column, shown = frame[name], name_some([name])
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise DataError(f"{place}: column {shown} has no value in row {row + 1} of the data")
        if not types.is_numeric_dtype(column.dtype) or types.is_complex_dtype(column.dtype):
            first = name_some([str(column.iloc[0])])
            raise DataError(
                f"{place}: column {shown} has values such as {first}, wanted numbers; leave it "
                "out, or write it as numbers"
            )
    return np.stack([frame[name].to_numpy(dtype=np.float64) for name in columns], axis=1)


def _labels(path: Path, column: Any, name: str) -> np.ndarray:
    if column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise DataError(f"{path}: {name} has no label in row {row + 1} of the data")
    values = column.to_numpy()
    return values if values.dtype.kind in "biuf" else column.to_numpy(dtype=object)


def _imported(name: str) -> ModuleType:
    return import_extra(name, "tables", "tables need", DataError)
