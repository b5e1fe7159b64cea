"""Copies of a run's weights: each is what a shorter run would have ended with."""

from pathlib import Path

import pytest
import torch

from noprop.config import RunConfig, replace
from noprop.errors import RunError
from noprop.fingerprint import fingerprint
from noprop.model import Model
from noprop.run.assembly import epochs_kept, kept_model
from noprop.run.run import Run
from noprop.run.units import group_folder, groups_of
from noprop.task import load_data
from noprop.training.commits import read_kept
from tools import LEARNED, SMALL, train_run

TWELVE = {**LEARNED, "method.dim": 12}
KINDS = {
    "dt": {"method.name": "dt", "method.num_blocks": 2},
    "dt-learned": {"method.name": "dt", "method.num_blocks": 2, **TWELVE},
    "dt-parallel": {"method.name": "dt", "method.num_blocks": 2, "train.order": "parallel"},
    "dt-learned-parallel": {"method.num_blocks": 2, "train.order": "parallel", **TWELVE},
    "ct": {"method.name": "ct", "method.steps": 5},
}


def train(folder: Path, **changes) -> tuple[RunConfig, Model]:
    config = replace(RunConfig(), {**SMALL, **changes})
    data = load_data(config)
    config = Run.join(config, folder, data=data).config
    return config, train_run(folder, config, data, lambda event: None)


def weights(model: Model) -> dict[str, torch.Tensor]:
    modules = {"shared": model.method.shared, **{u.name: u.module for u in model.method.units}}
    return {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_what_a_shorter_run_ends_with(tmp_path, kind):
    config, whole = train(tmp_path / "long", **KINDS[kind], **{"train.epochs": 4,
                                                              "train.keep_every": 2})  # fmt: skip
    _, short = train(tmp_path / "short", **KINDS[kind], **{"train.epochs": 2})
    assert epochs_kept(tmp_path / "long", config) == [2, 4]
    for epoch, other in ((2, short), (4, whole)):
        model, seconds = kept_model(tmp_path / "long", config, load_data(config), epoch)
        assert seconds > 0
        mine, theirs = weights(model), weights(other)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), (kind, epoch, name)
    two, four = (weights(m) for m in (short, whole))
    assert any(not torch.equal(two[name], four[name]) for name in two)


def test_the_last_epoch_has_a_copy_too(tmp_path):
    config, _ = train(tmp_path / "run", **KINDS["ct"], **{"train.epochs": 3, "train.keep_every": 2})
    assert epochs_kept(tmp_path / "run", config) == [2, 3]


@pytest.mark.parametrize("kind", ["dt", "dt-learned"])
def test_seconds_are_of_all_groups_until_then(tmp_path, kind):
    changes = {**KINDS[kind], "train.epochs": 2, "train.keep_every": 1}
    config, _ = train(tmp_path / "run", **changes)
    data, spent = load_data(config), []
    for group in groups_of(config):
        spent.append(read_kept(group_folder(tmp_path / "run", group), 1).seconds)
    assert kept_model(tmp_path / "run", config, data, 1)[1] == pytest.approx(sum(spent))
    assert kept_model(tmp_path / "run", config, data, 2)[1] > sum(spent)


def test_keeping_copies_changes_nothing_else(tmp_path):
    """Old runs go on with it, and a run has the same weights with copies and without."""
    config = replace(RunConfig(), {**SMALL, **KINDS["dt"]})
    keeping = replace(config, {"train.keep_every": 3, "data.test_size": 7})
    assert fingerprint(config, load_data(config).train) == fingerprint(
        keeping, load_data(keeping).train
    )


def test_an_epoch_counts_only_with_every_unit(tmp_path):
    config, _ = train(tmp_path / "run", **KINDS["dt"], **{"train.epochs": 2, "train.keep_every": 1})
    (tmp_path / "run/units/block-2/epoch-1.json").unlink()
    assert epochs_kept(tmp_path / "run", config) == [2]


def test_a_copy_of_another_training_is_refused(tmp_path):
    config, _ = train(tmp_path / "run", **KINDS["ct"], **{"train.epochs": 1, "train.keep_every": 1})
    other = replace(config, {"train.lr": 0.5})
    with pytest.raises(RunError, match="other settings or other data"):
        kept_model(tmp_path / "run", other, load_data(other), 1)
