"""Data sets in the formats of the package datasets, from folders of this machine."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from noprop.cli import main
from noprop.data import absolute_name, load_dataset
from noprop.errors import DataError
from noprop.hub import published_name

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
NAMES = ["a/b", "..", "c"]  # no names for folders


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package, with a cache of its own and no network."""
    package = pytest.importorskip(
        "datasets", reason="datasets is not installed: pip install 'noprop[datasets]'"
    )
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(package.config, "HF_HUB_OFFLINE", True)
    return package


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def images(datasets, n: slice = slice(None), names: list[str] = NAMES):
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows = {
        "image": [{"bytes": png(p), "path": None} for p in PIXELS[n]],
        "label": list(range(40))[n],
    }
    rows["label"] = [i % 3 for i in rows["label"]]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_images_keep_their_pixels_labels_and_names(datasets, tmp_path, monkeypatch):
    """From Parquet, with the parts of the data set; names of classes are text, not folders."""
    (tmp_path / "own").mkdir()
    images(datasets, slice(30)).to_parquet(tmp_path / "own/train.parquet")
    images(datasets, slice(30, 40)).to_parquet(tmp_path / "own/test.parquet")
    monkeypatch.chdir(tmp_path)
    data = load_dataset("hf:./own")
    assert data.class_names == tuple(NAMES)
    assert (len(data.train), len(data.test), data.shape) == (30, 10, (1, 6, 5))
    for part, start in ((data.train, 0), (data.test, 30)):
        wanted = {(PIXELS[i].tobytes(), i % 3) for i in range(start, start + len(part))}
        found = {(x.numpy().tobytes(), int(y)) for x, y in zip(part.x, part.y, strict=True)}
        assert found == wanted
    resized = load_dataset("hf:./own", image_size=4, color="rgb")
    assert resized.shape == (3, 4, 4)


def test_columns_of_numbers_are_features(datasets, tmp_path):
    """From save_to_disk, in one part: a fifth of it is the test part."""
    rows = {"height": list(range(50)), "kind": ["dog", "cat"] * 25, "width": [0.5] * 50}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    data = load_dataset(f"hf:{tmp_path}/saved", label="kind")
    assert data.columns == ("height", "width")
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test), data.shape) == (40, 10, (2,))
    x = torch.cat([data.train.x, data.test.x])
    y = torch.cat([data.train.y, data.test.y])
    assert x[:, 0].sort().values.tolist() == list(range(50))
    assert (x[:, 0].long() % 2 == 1 - y).all()  # even heights are dogs


@pytest.mark.parametrize("kind", ["numbers", "images"])
def test_the_test_part_is_test_or_else_validation(datasets, tmp_path, kind):
    """The part validation is not read where there is a test part."""
    sizes = {"train": 20, "validation": 4, "test": 6}
    parts = {
        name: images(datasets, slice(size))
        if kind == "images"
        else datasets.Dataset.from_dict({"x": list(range(size)), "y": [0, 1] * (size // 2)})
        for name, size in sizes.items()
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "three")
    del parts["test"]
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    for name, size in (("three", 6), ("two", 4)):
        data = load_dataset(f"hf:{tmp_path}/{name}")
        assert (len(data.train), len(data.test)) == (20, size)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"x": [1, 2], "y": [0, 1], "label": [0, 1]}, "found y, label in x, y, label"),
        ({"x": [1, 2]}, "found none in x"),
        ({"label": [0, 1]}, "no column besides the labels"),
        ({"x": ["a", "b"], "label": [0, 1]}, "the column x has no single numbers"),
        ({"x": [[1], [2]], "z": [1, 2], "label": [0, 1]}, "the column x has no single numbers"),
    ],
)
def test_columns_that_do_not_fit_are_named(datasets, tmp_path, rows, words):
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=words):
        load_dataset(f"hf:{tmp_path}/saved")


def test_a_class_without_an_example_is_named(datasets, tmp_path):
    images(datasets, names=[*NAMES, "never"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="never has no training example"):
        load_dataset(f"hf:{tmp_path}/saved")


def test_an_error_names_the_data_set_and_not_a_copy(datasets, tmp_path):
    rows = images(datasets).to_dict()
    rows["image"][7]["bytes"] = b"no image"
    broken = datasets.Dataset.from_dict(rows, features=images(datasets).features)
    broken.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=rf"^hf:{tmp_path}/saved/.*: not a readable image"):
        load_dataset(f"hf:{tmp_path}/saved")


def test_code_of_a_data_set_is_not_run(datasets, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(f"hf:{tmp_path}/own")
    assert not (tmp_path / "ran").exists()


def test_a_package_that_is_missing_or_runs_code_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'noprop\[datasets\]'"):
        load_dataset("hf:mnist")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(__version__="3.6.0"))
    with pytest.raises(DataError, match=r"needs datasets 4 or later.*3\.6\.0 is installed"):
        load_dataset("hf:mnist")


def test_folders_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("hf:./own") == f"hf:{tmp_path}/own"
    assert absolute_name("hf:ylecun/mnist") == "hf:ylecun/mnist"
    assert published_name("hf:ylecun/mnist") == "hf:ylecun/mnist"
    assert published_name(f"hf:{tmp_path}/own") == "own"


def test_the_command_trains_on_such_a_folder(datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(datasets).save_to_disk("own")
    Path("runs").mkdir()
    few = ["--num-blocks=2", "--epochs=1", "--batch-size=8", "--workers=1", "--runs=2", "--quiet"]
    assert main(["train", "--dataset", "hf:own", "--evaluation", "full", *few]) == 0
    assert Path("runs/own-dt/model.safetensors").exists()
