"""What a script sees of a run, and the short forms of its arguments."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import noprop
from noprop.data import Normalization, as_pixels, dataset_of
from noprop.errors import DataError
from noprop.model_inputs import raw_inputs
from noprop.task import Task
from noprop.training.events import Created, Event, Started
from tools import SMALL

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, size=(60, 8, 8), dtype=np.uint8)
LABELS = np.arange(60) % 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[noprop.Model, list[Event]]:
    """A run on arrays, with short forms of arguments."""
    events: list[Event] = []
    model = noprop.train(
        "digits-dt",
        data=(PIXELS, LABELS),
        epochs=2,
        lr=2e-3,
        workers=1,
        overrides=SMALL,
        folder=tmp_path_factory.mktemp("runs") / "run",
        emit=events.append,
    )
    return model, events


def test_short_arguments_are_fields(trained):
    model, events = trained
    assert (model.config.train.epochs, model.config.train.lr) == (2, 2e-3)
    assert model.config.data.dataset == "arrays"
    assert isinstance(events[0], Created)
    assert next(e for e in events if isinstance(e, Started)).workers == 1


def test_a_model_says_what_it_is_and_how_good(trained):
    model, _ = trained
    results = model.results
    assert results is not None
    best = results["modes"][results["default"]]
    assert (results["accuracy"], results["log_loss"]) == (best["accuracy"], best["log_loss"])
    assert results["training"]["wall_seconds"] > 0
    assert repr(model) == (
        f"<noprop.Model arrays-dt: dt on arrays, 3 classes, accuracy {best['accuracy']:.2f} %, "
        f"in {model.folder}>"
    )
    assert repr(noprop.load(model.folder)) == repr(model)


def test_a_model_without_an_evaluation_has_no_results(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "copy")
    copy = noprop.load(tmp_path / "copy")
    assert copy.results is None
    assert "accuracy" not in repr(copy)


def test_labels_are_names_of_the_likeliest_class(trained):
    model, _ = trained
    x = PIXELS[:7, None]
    likeliest = model.predict(x).argmax(dim=1).tolist()
    assert model.predict_labels(x) == [model.class_names[i] for i in likeliest]
    assert model.predict_labels(x[:0]) == []


def test_floats_of_pixels_predict_as_the_pixels(trained):
    """In 0..1, as most libraries have images; anything else of floats is refused."""
    model, _ = trained
    x = PIXELS[:5, None]
    expected = model.predict(x)
    assert torch.equal(model.predict(x / 255), expected)
    assert torch.equal(model.predict(torch.from_numpy(x / np.float32(255))), expected)
    with pytest.raises(DataError, match="wanted uint8"):
        model.predict(x.astype(np.float32))


def test_what_numpy_takes_for_an_array_is_an_input_and_else_refused():
    """Lists, reversed views and the other byte order; text and ragged rows are one line."""
    x = PIXELS[:3] / 255
    task = Task((1, 8, 8), ("a", "b"), Normalization.of(torch.from_numpy(PIXELS[:, None])))
    expected = torch.from_numpy(PIXELS[:3, None])
    for kind in (x, x.tolist(), x[::-1][::-1], x.astype(">f8")):
        assert raw_inputs(kind, task, None).equal(expected)
    assert raw_inputs(x[::-1], task, None).equal(expected.flip(0))
    for wrong in ("image.png", [["a"]], [[1, 2], [3]], None):
        with pytest.raises(DataError, match="x: wanted an array of numbers"):
            raw_inputs(wrong, task, None)


def test_images_predict_in_each_layout_that_training_takes(trained):
    """(N, H, W) for a model of one channel; of colour (N, H, W, C) unless it is (N, C, H, W)."""
    model, _ = trained
    assert torch.equal(model.predict(PIXELS[:5]), model.predict(PIXELS[:5, None]))
    with pytest.raises(DataError, match="wanted uint8 of shape"):
        model.predict(PIXELS[:5, :7])
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    task = Task((3, 4, 5), ("a", "b"), Normalization.of(x))
    assert raw_inputs(x.permute(0, 2, 3, 1), task, None).equal(x)
    square = x.new_zeros(2, 3, 3, 3) + torch.arange(3, dtype=torch.uint8)
    task = Task((3, 3, 3), ("a", "b"), Normalization.of(square))
    assert raw_inputs(square, task, None).equal(square)


def test_arrays_are_split_like_files():
    """One fifth for the test part, or the test part that came; images keep their pixels."""
    halves = dataset_of((PIXELS, LABELS))
    assert (len(halves.train), len(halves.test), halves.shape) == (48, 12, (1, 8, 8))
    whole = dataset_of((PIXELS, LABELS, PIXELS[:6], LABELS[:6]))
    assert torch.equal(whole.train.x[:, 0], torch.from_numpy(PIXELS))
    assert len(whole.test) == 6
    tensors = dataset_of((torch.rand(30, 4) * 9, torch.arange(30) % 2))
    assert tensors.train.x.dtype == torch.float32


@pytest.mark.parametrize("kind", [object, np.str_])
def test_labels_that_are_text_are_names_of_classes(kind):
    words = np.array(["owl", "ant", "cat"])[LABELS]
    dataset = dataset_of((PIXELS, words.astype(kind), PIXELS, words[::-1].tolist()))
    assert dataset.class_names == ("ant", "cat", "owl")
    assert [dataset.class_names[i] for i in dataset.train.y] == words.tolist()
    assert [dataset.class_names[i] for i in dataset.test.y] == words[::-1].tolist()


def test_floats_in_0_to_1_are_images_and_it_is_said():
    with pytest.warns(UserWarning, match=r"floats in 0\.\.1 are taken as images"):
        scaled = dataset_of((PIXELS / 255, LABELS, PIXELS[:6] / 255, LABELS[:6]))
    assert torch.equal(scaled.train.x[:, 0], torch.from_numpy(PIXELS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = dataset_of((PIXELS.reshape(60, -1) / 255, LABELS))
        signed = dataset_of((PIXELS / 255 - 0.5, LABELS))
    assert table.train.x.dtype == signed.train.x.dtype == torch.float32


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_pixel_survives_the_way_to_floats_and_back(kind):
    pixels = np.arange(256, dtype=np.uint8)
    assert (as_pixels(pixels.astype(kind) / kind(255)) == pixels).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((PIXELS, LABELS, PIXELS), "wanted (x, y) or (x, y, x_test, y_test), got 3"),
        ((PIXELS, LABELS[:-1]), "x has 60 examples but y has 59"),
        ((PIXELS, LABELS + 0.5), "data: y has the label 0.5, wanted whole numbers or text"),
        ((PIXELS, LABELS.astype(object)), "data: y is object of shape (60,), wanted whole"),
    ],
)
def test_what_is_no_data_set_is_refused_before_a_folder_is_made(tmp_path, data, message):
    with pytest.raises(DataError, match=re.escape(message)):
        noprop.train(data=data, folder=tmp_path / "run", workers=1)
    assert not (tmp_path / "run").exists()


def test_a_run_on_arrays_asks_for_them_again(trained, tmp_path):
    model, _ = trained
    with pytest.raises(DataError, match="arrays: the run was trained on arrays of a script"):
        model.evaluate()
    resumed = noprop.resume(model.folder, data=(PIXELS, LABELS))
    assert torch.equal(resumed.predict(PIXELS[:5, None]), model.predict(PIXELS[:5, None]))


def test_progress_is_that_of_the_command_line(capsys, tmp_path):
    options = {**SMALL, "train.workers": 1}
    noprop.train("digits-dt", epochs=1, overrides=options, folder=tmp_path / "run", progress=True)
    shown = capsys.readouterr().err
    assert "training " in shown
    assert "evaluating 359 test examples" in shown


def test_the_public_names_are_listed():
    assert dir(noprop) == sorted(noprop.__all__)
    assert Path(noprop.__file__).name == "__init__.py"
