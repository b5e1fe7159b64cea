"""The object that holds a run: made, trained in parts, opened again, assembled."""

import pytest
import torch

import noprop
from noprop.errors import ConfigError, RunError
from noprop.training.events import Event, Found, Started

SMALL = {
    "method.num_blocks": 2,
    "method.encoder": "mlp",
    "data.train_size": 200,
    "train.epochs": 1,
    "train.workers": 1,
    "train.device": "cpu",
    "evaluation.runs": 1,
}


def test_a_run_is_trained_in_parts_and_assembled(tmp_path):
    """The same probabilities as those of one call of noprop.train."""
    run = noprop.Run.create("digits-dt", folder=tmp_path / "r", overrides=SMALL)
    assert run.groups == ["block-1", "block-2", "readout"]
    run.train(["block-2"])
    assert [state.finished for state in run.states()] == [False, True, False]
    with pytest.raises(RunError, match="block-1, readout"):
        run.assemble()
    events: list[Event] = []
    again = noprop.Run.open(tmp_path / "r")
    assert again.config == run.config
    assert again.fingerprint == run.fingerprint
    again.train(emit=events.append)
    assert [e.group for e in events if isinstance(e, Found)] == ["block-2"]
    assert [e.groups for e in events if isinstance(e, Started)] == [["block-1", "readout"]]
    model = again.assemble()
    whole = noprop.train("digits-dt", folder=tmp_path / "whole", overrides=SMALL)
    x = run.data.test.x[:20]
    assert torch.equal(model.predict(x), whole.predict(x))
    assert torch.equal(noprop.load(tmp_path / "r").predict(x), whole.predict(x))


def test_a_run_is_joined_by_those_who_want_the_same_training(tmp_path):
    folder = tmp_path / "r"
    made = noprop.Run.join("digits-dt", folder, overrides=SMALL)
    same = noprop.Run.join("digits-dt", folder, overrides={**SMALL, "train.workers": 2})
    assert same.fingerprint == made.fingerprint
    with pytest.raises(RunError, match=r"train\.lr is 0\.001 .* 0\.5"):
        noprop.Run.join("digits-dt", folder, overrides={**SMALL, "train.lr": 0.5})
    with pytest.raises(RunError, match="already"):
        noprop.Run.create("digits-dt", folder=folder, overrides=SMALL)
    with pytest.raises(ConfigError, match="no unit 'block-3'"):
        made.train(["block-3"])
