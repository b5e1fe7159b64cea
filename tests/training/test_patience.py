"""Early stopping: each unit by its own validation loss, and a resumed run as one never stopped."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import noprop
from noprop.config import RunConfig, replace
from noprop.data import Examples
from noprop.errors import ConfigError
from noprop.run.longer import extend
from noprop.run.metrics import read_metrics
from noprop.task import RunData
from noprop.training import trainer
from noprop.training.events import Epoch, Event, Trained
from noprop.training.patience import Patience
from noprop.training.reports import Reports
from tools import LEARNED, NOISE_DATA, NOISE_TASK, SMALL, Clock, Killed, assert_same, weights

OTHER = Examples(
    torch.randint(
        256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    ),
    torch.arange(40) % 10,
)
DATA = RunData(NOISE_TASK, NOISE_DATA.train, OTHER, NOISE_DATA.test)
# Of noise the validation loss soon rises: every unit overfits.
STOPPING = {
    **SMALL,
    "method.num_blocks": 2,
    "method.encoder": "mlp",
    "method.objective": "cross-entropy",
    "method.weighting": "uniform",
    "train.batch_size": 16,
    "train.epochs": 12,
    "train.patience": 2,
    "train.lr": 3e-3,
    "evaluation.budget": "off",
}
KINDS: dict[str, dict[str, Any]] = {
    "blocks": {},
    "averaged": {"train.ema": 0.9},
    "learned": {**LEARNED, "method.dim": 12, "train.epochs": 5, "train.patience": 1},
    "parallel": {
        **LEARNED,
        "method.dim": 12,
        "train.epochs": 5,
        "train.patience": 1,
        "train.order": "parallel",
    },
    "greedy": {"method.name": "greedy", "method.num_layers": 3},
}


def config_of(kind: str) -> RunConfig:
    changes = {**STOPPING, **KINDS[kind]}
    if kind == "greedy":
        for name in ("method.num_blocks", "method.objective", "method.weighting"):
            del changes[name]
    return replace(RunConfig(), changes)


def test_patience_is_over_after_so_many_epochs_without_a_lower_loss():
    losses = [3.0, 2.0, 2.0, 1.5, math.nan, 1.6]
    patience, ends, best = Patience(2), [], []
    for epoch, loss in enumerate(losses, start=1):
        patience.improves(epoch, loss)
        ends.append(patience.is_over)
        best.append(patience.best)
    assert ends == [False, False, False, False, False, True]
    assert best == [1, 2, 2, 4, 4, 4]  # an equal loss is no improvement
    assert patience.loss == 1.5
    again = Patience(2)
    again.restore(patience.numbers())
    assert again == patience


def train(folder: Path, kind: str, events: list[Event]) -> noprop.Run:
    run = noprop.Run.create(config_of(kind), folder=folder, data=DATA)
    run.train(emit=events.append)
    return run


def later_losses_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add to the losses that groups are judged by: with W_Embed nothing overfits so soon."""
    loss_of = Reports.group_loss
    monkeypatch.setattr(
        Reports, "group_loss", lambda self, known: loss_of(self, known) + 9 * known[-1].epoch // 3
    )


def assert_best(folder: Path, group: str, shorter: Path) -> None:
    """The weights of a group, and their averages, are those of a run of so many epochs."""
    left, right = (
        {n: v for n, v in weights(place, group).items() if re.search("module|average|weight", n)}
        for place in (folder, shorter)
    )
    left = {n: v for n, v in left.items() if not re.search("optimizer|best|patience", n)}
    right = {n: v for n, v in right.items() if "optimizer" not in n}
    assert_same(left, right)


@pytest.mark.parametrize("kind", ["blocks", "averaged"])
def test_each_unit_stops_on_its_own_loss_and_keeps_its_best_weights(tmp_path, kind):
    events: list[Event] = []
    run = train(tmp_path / "run", kind, events)
    ends = {e.units[0]: e for e in events if isinstance(e, Trained)}
    assert ends["block-1"].last_epoch < 12  # it overfits
    for name, end in ends.items():
        told = [e for e in events if isinstance(e, Epoch) and e.unit == name]
        losses = [e.validation_loss for e in told if e.validation_loss is not None]
        assert end.best_epoch == 1 + losses.index(min(losses))
        assert len(losses) == end.last_epoch == min(12, end.best_epoch + 2)
        plain = replace(run.config, {"train.patience": 0, "train.epochs": end.best_epoch})
        shorter = noprop.Run.create(plain, folder=tmp_path / name, data=DATA)
        shorter.train([name])
        assert_best(run.folder, name, shorter.folder)


@pytest.mark.parametrize("kind", ["learned", "greedy"])
def test_units_that_stop_together_keep_the_weights_of_one_epoch(tmp_path, monkeypatch, kind):
    """With W_Embed its weights, too; a stack is judged by the loss of its last unit alone."""
    if kind == "learned":
        later_losses_rise(monkeypatch)
    judged, improves = [], Patience.improves

    def judge(self: Patience, number: int, loss: float) -> bool:
        judged.append(loss)
        return improves(self, number, loss)

    monkeypatch.setattr(Patience, "improves", judge)
    events: list[Event] = []
    run = train(tmp_path / "run", kind, events)
    (end,) = (e for e in events if isinstance(e, Trained))
    assert end.best_epoch == 1 + judged.index(min(judged)) < end.last_epoch == len(judged)
    if kind == "greedy":
        last = [
            e for e in events if isinstance(e, Epoch) and e.unit == run.config.method.unit_names[-1]
        ]
        assert judged == [e.validation_loss for e in last]
    plain = replace(run.config, {"train.patience": 0, "train.epochs": end.best_epoch})
    shorter = noprop.Run.create(plain, folder=tmp_path / "shorter", data=DATA)
    shorter.train()
    assert_best(run.folder, run.groups[0], shorter.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_stops_at_the_same_epoch_with_the_same_bits(tmp_path, monkeypatch, kind):
    """Killed by ``emit`` at every 17th event, also where an epoch has just ended."""
    monkeypatch.setattr(trainer, "time", Clock())
    if kind in ("learned", "parallel"):
        later_losses_rise(monkeypatch)
    whole: list[Event] = []
    train(tmp_path / "whole", kind, whole)
    noprop.Run.create(config_of(kind), folder=tmp_path / "cut", data=DATA)
    count = 0

    def killing(event: Event) -> None:
        nonlocal count
        count += 1
        if count % 17 == 0:
            raise Killed

    for _ in range(1000):
        try:
            noprop.Run.open(tmp_path / "cut", data=DATA).train(emit=killing)
        except Killed:
            continue
        break
    assert count > 17
    assert_same(tmp_path / "whole", tmp_path / "cut")  # also the numbers of the epochs
    trained = [e for e in read_metrics(tmp_path / "whole") if e["event"] == "trained"]
    assert min(e["last_epoch"] for e in trained) < config_of(kind).train.epochs


def test_patience_needs_a_validation_part(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.patience: .* got 3 with data\.validation=0"):
        replace(RunConfig(), {"train.patience": 3, "data.validation": 0.0})
    none = Examples(NOISE_DATA.validation.x[:1], NOISE_DATA.validation.y[:1])
    data = RunData(NOISE_DATA.task, NOISE_DATA.train, none, NOISE_DATA.test)
    with pytest.raises(ConfigError, match=r"train\.patience: .*data\.validation=0\.1 .*gives 1"):
        noprop.Run.create(config_of("blocks"), folder=tmp_path / "run", data=data)
    with pytest.raises(ConfigError, match=r"train\.patience: .*train\.offload and method\.learned"):
        replace(config_of("learned"), {"train.offload": True})


def test_a_run_that_stops_early_cannot_be_made_longer(tmp_path):
    config = config_of("blocks")
    with pytest.raises(ConfigError, match=r"with train\.patience=2 the run ended .* --init"):
        extend(tmp_path, config, 20)
