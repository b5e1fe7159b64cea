"""Training longer is the same as having asked for more epochs at first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import noprop
from noprop.errors import ConfigError, NoPropError, RunError
from noprop.run import longer
from noprop.run.locks import hold
from noprop.run.longer import extend, lengthen
from noprop.run.units import group_lock
from noprop.tensor_files import load_tensors
from tools import NOISE_DATA, SMALL

OTHER_DATA = replace(NOISE_DATA, train=replace(NOISE_DATA.train, x=255 - NOISE_DATA.train.x))
LEARNED = {"method.embedding": "orthogonal", "method.dim": 5, "method.learned": True}
KINDS: dict[str, dict[str, Any]] = {
    "blocks": {},
    "averaged": {"train.ema": 0.9},
    "learned": LEARNED,
    "parallel": {**LEARNED, "train.order": "parallel"},
}


def trained(folder: Path, epochs: int, **changes: Any) -> noprop.Model:
    options = {**SMALL, **changes, "train.epochs": epochs}
    return noprop.train("digits-dt", folder=folder, overrides=options, data=NOISE_DATA)


def weights(model: noprop.Model) -> dict[str, torch.Tensor]:
    return load_tensors(model.folder / "model.safetensors")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_training_is_one_of_more_epochs_to_the_bit(tmp_path, kind):
    """Twice in a row: from 1 epoch to 2, and to 3."""
    at_once = trained(tmp_path / "at-once", 3, **KINDS[kind])
    first = trained(tmp_path / "run", 1, **KINDS[kind])
    assert any(
        not torch.equal(tensor, weights(first)[name]) for name, tensor in weights(at_once).items()
    )
    for epochs in (2, 3):
        model = noprop.resume(tmp_path / "run", epochs=epochs, data=NOISE_DATA)
    assert (model.config.train.epochs, model.config.train.extended_from) == (3, 1)
    found, expected = weights(model), weights(at_once)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    loaded = noprop.load(tmp_path / "run")
    assert loaded.results is not None
    units = len(model.config.method.unit_names)
    assert loaded.results["training"]["seconds"] < 60 * units


def test_a_run_that_was_killed_when_it_was_made_longer_is_trained_longer(tmp_path, monkeypatch):
    """After the configuration was written, and before any commit was."""
    at_once = trained(tmp_path / "at-once", 2)
    trained(tmp_path / "run", 1)
    config = extend(tmp_path / "run", noprop.load(tmp_path / "run").config, 2)
    lengthen(tmp_path / "run", config)
    with pytest.raises(RunError, match="training has not finished"):
        noprop.load(tmp_path / "run")
    model = noprop.resume(tmp_path / "run", data=NOISE_DATA)
    expected = weights(at_once)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": OTHER_DATA},
        {"track": ["paper"]},
        {"workers": "few"},
    ],
)
def test_a_wrong_argument_does_not_cost_the_model_of_the_shorter_training(tmp_path, wrong):
    folder = trained(tmp_path / "run", 1).folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(NoPropError):
        noprop.resume(folder, epochs=2, **{"data": NOISE_DATA, **wrong})
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_a_schedule_that_has_an_end_cannot_be_made_longer(tmp_path, schedule):
    model = trained(tmp_path / "run", 1, **{"train.schedule": schedule})
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match=rf"train\.schedule={schedule} depends on the number"):
        noprop.resume(model.folder, epochs=2, data=NOISE_DATA)
    assert (tmp_path / "run" / "config.toml").read_bytes() == before
    assert (tmp_path / "run" / "model.json").exists()


def test_fewer_epochs_and_a_busy_run_are_refused(tmp_path):
    config = trained(tmp_path / "run", 2).config
    with pytest.raises(ConfigError, match="can be trained longer, not shorter, got 1"):
        extend(tmp_path / "run", config, 1)
    assert extend(tmp_path / "run", config, 2) == config
    with hold(group_lock(tmp_path / "run", "block-1"), "busy"):
        with pytest.raises(RunError, match="another process is training block-1"):
            extend(tmp_path / "run", config, 3)
    assert (tmp_path / "run" / "model.json").exists()
    of_the_model = {"model.json", "evaluation.json", "predictions.safetensors"}
    assert set(longer.OF_THE_MODEL) >= of_the_model
