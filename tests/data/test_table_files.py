"""Tables: what becomes of columns, what is refused, and that a prediction finds its columns."""

import io
import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from noprop.data import inputs, load_dataset, read_inputs
from noprop.errors import DataError

WORDS = ["cat", "bee", "dog"]
FRAME = pd.DataFrame(
    {
        "size": np.arange(30) / 4,
        "kind": [WORDS[i % 3] for i in range(30)],
        "legs": np.arange(30) % 5,
        "wild": np.arange(30) % 2 == 0,
    }
)


def refused(path: Path | str, message: str):
    return pytest.raises(DataError, match=rf"\A{re.escape(str(path))}: [^\n]*{message}[^\n]*\Z")


def write(path: Path, frame: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_table_is_a_label_and_columns_of_numbers(tmp_path, suffix):
    """The column of the label may be anywhere; the others keep their order and their rows."""
    dataset = load_dataset(str(write(tmp_path / f"a.{suffix}", FRAME)), label="kind")
    assert (dataset.columns, dataset.class_names) == (
        ("size", "legs", "wild"),
        ("bee", "cat", "dog"),
    )
    assert (len(dataset.train), len(dataset.test)) == (24, 6)
    rows = torch.cat([dataset.train.x, dataset.test.x])
    labels = torch.cat([dataset.train.y, dataset.test.y])
    order = rows[:, 0].argsort()
    assert rows[order].tolist() == FRAME[["size", "legs", "wild"]].astype(float).to_numpy().tolist()
    assert [dataset.class_names[i] for i in labels[order]] == list(FRAME["kind"])
    for part in (dataset.train, dataset.test):  # each example is named after its row of the file
        assert part.files == tuple(f"row {int(4 * size) + 1}" for size in part.x[:, 0].tolist())


@pytest.mark.parametrize("name", ["label", "Target", "y", "Class"])
@pytest.mark.parametrize(
    "labels", [np.arange(30) % 3 + 5, np.arange(30) % 2 == 0, np.arange(30) % 3 / 1]
)
def test_the_usual_column_of_labels_is_found(tmp_path, name, labels):
    frame = FRAME.drop(columns="kind").assign(**{name: labels})
    dataset = load_dataset(str(write(tmp_path / "a.csv", frame)))
    assert dataset.columns == ("size", "legs", "wild")
    assert dataset.num_classes == len(set(labels))


def test_semicolons_quotes_and_marks_of_spreadsheets_are_read(tmp_path):
    text = '\ufeff"a, b";c;label\r\n' + "".join(
        f"{i},5;{i};NA\r\n{i};{i};None\r\n" for i in range(9)
    )
    (tmp_path / "a.csv").write_bytes(text.replace(",5", ".5").encode())
    dataset = load_dataset(str(tmp_path / "a.csv"))
    assert dataset.columns == ("a, b", "c")
    assert dataset.class_names == ("NA", "None")  # labels like others, not missing values


FAULTS = {
    "no column of that name": ("a,b\n1,2\n", "kind", "has no column 'kind', only a, b"),
    "two usual columns": ("y,label\n1,2\n", None, "which column has the labels.* --label"),
    "no usual column": ("a,b\n1,2\n", None, "which column has the labels.* one of b, a"),
    "only labels": ("y\n1\n2\n", None, "has no column but y"),
    "text": ("y,city\n1,Rome\n2,Bonn\n", None, "column city has values such as Rome, wanted numb"),
    "a missing number": ("y,a\n1,1\n2,\n", None, "column a has no value in row 2"),
    "a missing label": ("y,a\n1,1\n,2\n", None, "column y has no label in row 2"),
    "an infinite number": ("y,a\n1,1\n2,inf\n", None, "holds a NaN or a number that is infinite"),
    "labels that are fractions": ("y,a\n1.5,1\n2,2\n", None, "column y has the label 1.5"),
    "a long label": (f"y,a\nb,1\n{'c' * 300},2\n", None, "a label of 300 characters"),
    "no names": ("1,2\n3,4\n", None, "first line has numbers, wanted the names"),
    "no rows": ("y,a\n", None, "has no rows"),
    "a blank first line": ("\ny,a\n1,2\n", None, "has no line of column names"),
    "a name twice": ("y,a,a\n1,2,3\n", None, "not all in the first line"),
    "a long line": ("y,a\n1,2,3\n", None, "not a readable CSV table"),
    "an open quote": ('y,a\n1,"2\n', None, "not a readable CSV table"),
    "no text": ("y,a\n\udcff,2\n", None, "not a readable CSV table"),
    "a name over two lines": ('y,"a\nb"\n1,2\n', None, "names of the columns are not all in"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "label", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_no_table_of_numbers_is_refused(tmp_path, text, label, message):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with refused(path, message):
        load_dataset(str(path), label=label)


def test_a_label_is_for_tables_alone(tmp_path):
    for name in ("digits", str(tmp_path)):
        with refused(name, "label is for tables only"):
            load_dataset(name, label="kind")


@pytest.mark.parametrize("package", ["pandas", "pyarrow.parquet"])
def test_without_the_packages_the_extra_is_named(tmp_path, monkeypatch, package):
    path = write(tmp_path / ("a.csv" if package == "pandas" else "a.parquet"), FRAME)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"tables need py?a\w+: pip install 'noprop\[tables\]'"):
        load_dataset(str(path), label="kind")


# -- strangers -----------------------------------------------------------------------------------


def test_short_lines_beneath_a_long_header_take_no_memory(tmp_path):
    """pandas would fill 400,000 lines of 100,000 columns: 320 GB."""
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{i}" for i in range(100_000)) + "\n" + "1\n" * 400_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused(path, "400002 rows of 100000 columns from .* refused as a bomb"):
        load_dataset(str(path), label="c0")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_parquet_file_that_unpacks_to_more_is_refused(tmp_path):
    """Ten million equal rows pack to kilobytes."""
    frame = pd.DataFrame({"y": np.zeros(10_000_000, np.int8), "a": np.zeros(10_000_000, np.int8)})
    path = write(tmp_path / "a.parquet", frame)
    assert path.stat().st_size < 1 << 20
    with refused(path, "refused as a bomb"):
        load_dataset(str(path))


def test_damaged_and_nested_parquet_files_are_one_line(tmp_path):
    path = write(tmp_path / "a.parquet", FRAME)
    whole = path.read_bytes()
    for data in (
        whole[:-20],
        whole[:4] + whole[900:],
        b"PAR1" * 9,
        whole[:400] + b"\xff" * 40 + whole[440:],
    ):
        path.write_bytes(data)
        with refused(path, "not a readable Parquet file|wanted|column"):
            load_dataset(str(path), label="kind")
    write(path, FRAME.assign(legs=[[1, 2]] * 30))
    with refused(path, "column legs is nested, wanted numbers"):
        load_dataset(str(path), label="kind")


# -- prediction ----------------------------------------------------------------------------------


def test_columns_are_found_by_name_wherever_they_are(tmp_path):
    mixed = FRAME[["wild", "kind", "legs", "size"]]
    path = write(tmp_path / "a.csv", pd.DataFrame(mixed))
    names, x = read_inputs([path], (3,), columns=("size", "legs", "wild"), dtype="float32")
    assert x.tolist() == FRAME[["size", "legs", "wild"]].astype(float).to_numpy().tolist()
    assert names == [f"{path}[{i}]" for i in range(30)]
    with refused(path, "lacks the column age of the training data"):
        read_inputs([path], (2,), columns=("size", "age"), dtype="float32")
    with refused(path, "has 4 columns, the model takes 3 numbers"):
        read_inputs([path], (3,), dtype="float32")
    with refused(path, r"has 4 columns, the model takes images of shape \(1, 2, 3\): wanted image"):
        read_inputs([path], (1, 2, 3))


def test_standard_input_is_csv_and_may_be_pixels(monkeypatch):
    pixels = np.arange(2 * 64).reshape(2, 64)
    text = pd.DataFrame(pixels).add_prefix("p").to_csv(index=False)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    names, x = read_inputs([Path("-")], (1, 8, 8))
    assert names == ["stdin[0]", "stdin[1]"]
    assert x.dtype == torch.uint8
    assert x.flatten(1).tolist() == pixels.tolist()
    for text, message in (
        ("a\n256\n", "in 0..255"),
        ("a\n0.5\n", "in 0..255"),
        ("a\n-1\n", "in 0..255"),
        ("", "no line"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        with refused("standard input", message):
            read_inputs([Path("-")], (1, 1, 1))
    monkeypatch.setattr(inputs, "MAX_STANDARD_INPUT", 9)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\n" * 9)))
    with refused("standard input", "has more than"):
        read_inputs([Path("-")], (1, 1, 1))


def test_a_missing_table_is_missing_and_not_of_another_kind(tmp_path):
    name = str(tmp_path / "none.csv")
    with refused(name, "no such file or folder"):
        load_dataset(name, label="kind")
