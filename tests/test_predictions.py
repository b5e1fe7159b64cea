"""The answers that an evaluation keeps: what is counted of them, and files of strangers."""

import json
from dataclasses import replace as with_part
from typing import Any

import pytest
import torch

from noprop.averaging import calibration_error, reliability
from noprop.config import RunConfig, replace
from noprop.errors import DamagedError
from noprop.evaluate import evaluate
from noprop.methods.base import Method
from noprop.model import Model, empty_model, ready
from noprop.predictions import (
    FILE,
    TENSORS,
    Predictions,
    predictions_of,
    read_predictions,
    save_predictions,
)
from noprop.tensor_files import save_tensors
from tools import NOISE, NOISE_TASK, TWO_BLOCKS


@pytest.fixture(scope="module")
def model() -> Model:
    """A model as it is before training."""
    model = empty_model(
        replace(RunConfig(), {**TWO_BLOCKS, "evaluation.batch_size": 50}), NOISE_TASK
    )
    ready(model)
    return model


def coded(names: Any) -> torch.Tensor:
    """Names of files as a file of answers holds them."""
    return torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)


def made() -> Predictions:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.9, 0.0]])
    files = "cats/1.png", "cats/ü\n.png", "dogs/<b>.png", "birds/3.png"
    return with_part(predictions_of(p, torch.tensor([0, 1, 2, 2])), files=files)


def test_answers_are_counted_by_hand():
    found = made()
    assert found.label.tolist() == [0, 0, 1, 1]
    assert found.confidence.tolist() == pytest.approx([0.7, 0.6, 0.8, 0.9])
    assert found.likelihood.tolist() == pytest.approx([0.7, 0.3, 0.1, 0.0])
    assert found.correct.tolist() == [True, False, False, False]
    # Rows are true classes: both examples of class 2 are taken for class 1.
    assert found.confusion(3).tolist() == [[1, 0, 0], [1, 0, 0], [0, 2, 0]]
    assert found.mistakes(2).tolist() == [3, 2]  # the right answer of 0.7 is none
    assert found.mistakes(9).tolist() == [3, 2, 1]


def test_an_evaluation_keeps_the_default_prediction_of_its_first_run(model, monkeypatch):
    """Of one run, accuracy and calibration error are those of the answers; of two, they differ."""
    kept: list[Predictions] = []
    once = with_part(model, config=replace(model.config, {"evaluation.runs": 1}))
    results = evaluate(once, NOISE, keep=kept.append)
    chosen = results["modes"][results["default"]]
    assert 100 * kept[0].correct.double().mean().item() == pytest.approx(chosen["accuracy"])
    assert -kept[0].likelihood.log().mean().item() == pytest.approx(chosen["log_loss"], abs=1e-5)
    _, confidences, correct = reliability(kept[0].confidence, kept[0].correct)
    error = (correct - confidences).abs().sum().item() / len(NOISE)
    assert error == pytest.approx(results["calibration_error"], abs=1e-6)
    calls = 0
    predict = Method.predict

    def counted(*arguments, **named):
        nonlocal calls
        calls += 1
        return predict(*arguments, **named)

    monkeypatch.setattr(Method, "predict", counted)
    evaluate(once, NOISE)
    without, calls = calls, 0
    evaluate(once, NOISE, keep=kept.append)
    assert calls == without > 0  # nothing is predicted a second time
    evaluate(once, NOISE, keep=kept.append, modes=["single"])  # which is not the default
    assert len(kept) == 2
    twice = with_part(model, config=replace(model.config, {"evaluation.runs": 2}))
    evaluate(twice, NOISE, keep=kept.append)
    assert len(kept) == 3
    assert torch.equal(kept[2].confidence, kept[0].confidence)


def test_bins_of_confidence_are_those_of_the_calibration_error():
    g = torch.Generator().manual_seed(0)
    p, y = torch.randn(300, 3, generator=g).softmax(dim=1), torch.randint(3, (300,), generator=g)
    found = predictions_of(p, y)
    counts, confidences, correct = reliability(found.confidence, found.correct)
    assert counts.sum() == 300
    assert correct.sum() == found.correct.sum()
    assert (correct - confidences).abs().sum() / 300 == pytest.approx(calibration_error(p, y))
    occupied = counts > 0
    edges = torch.arange(15).double() / 15
    means = confidences[occupied] / counts[occupied]
    assert ((edges[occupied] <= means) & (means <= edges[occupied] + 1 / 15)).all()


def test_a_file_of_answers_is_read_as_it_was_written(tmp_path):
    assert read_predictions(tmp_path, 3) is None
    save_predictions(tmp_path, made(), "test")
    stored = read_predictions(tmp_path, 3)
    assert stored is not None
    found, part = stored
    assert part == "test"
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(made(), name)), name
    assert found.files == made().files
    assert found.name(2) == "dogs/<b>.png"
    assert with_part(found, files=(), index=found.index + 7).name(2) == "example 9"
    save_predictions(
        tmp_path, predictions_of(torch.ones(10_000, 10) / 10, found.y[:1].expand(10_000)), "test"
    )
    assert (tmp_path / FILE).stat().st_size < 21 * 10_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": torch.tensor([0, 0, 1, 3], dtype=torch.int32)}, "label has a value"),
        ({"y": torch.tensor([0, 0, 1, -1], dtype=torch.int32)}, "y has a value"),
        ({"index": torch.tensor([0, 0, 1, -1], dtype=torch.int32)}, "index has a value"),
        ({"confidence": torch.tensor([0.1, 0.1, 0.1, torch.nan])}, "confidence has a value"),
        ({"likelihood": torch.tensor([0.1, 0.1, 0.1, 2.0])}, "likelihood has a value"),
        ({"label": torch.zeros(4)}, "label is torch.float32"),
        ({"label": torch.zeros(3, dtype=torch.int32)}, r"label is .* of shape \(3,\)"),
        ({"y": torch.zeros(4, 1, dtype=torch.int32)}, "y is"),
        ({"part": "<b>"}, "names no part"),
        ({"part": None}, "names no part"),
        ({"confidence": None}, "KeyError"),
        ({"files": coded(["a"] * 3)}, "files has no name for each of 4"),
        ({"files": coded({"a": 1, "b": 2, "c": 3, "d": 4})}, "files has no name"),
        ({"files": coded(["a", "b", "c", 4])}, "files has a name that is no text"),
        ({"files": coded("abcd")[:2]}, "JSONDecodeError"),
        ({"files": torch.zeros(4)}, "files is torch.float32"),
    ],
)
def test_a_file_of_a_stranger_is_refused_with_its_reason(tmp_path, change, reason):
    save_predictions(tmp_path, made(), "test")
    stored = read_predictions(tmp_path, 3)
    assert stored is not None
    found = {name: getattr(stored[0], name) for name in TENSORS}
    tensors = {n: v.int() if v.dtype == torch.int64 else v for n, v in found.items()}
    about = {"part": change.pop("part", "test")}
    tensors = {n: v for n, v in (tensors | change).items() if v is not None}
    save_tensors(tmp_path / FILE, tensors, about)
    with pytest.raises(DamagedError, match=f"{FILE}: is damaged .*{reason}"):
        read_predictions(tmp_path, 3)
