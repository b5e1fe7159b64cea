"""The estimates of the time of cells: which steps are timed."""

from typing import Any

import pytest
import torch

from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.paper import estimate
from noprop.task import Task
from noprop.training.trainer import Trainer

TASK = Task((1, 8, 8), tuple("abcd"), Normalization((0.5,), (0.25,)))
NOISE = Examples(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4)
DTP = {"method.name": "dtp", "method.num_layers": 3, "method.width": 8}
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "stack": ({"method.name": "ff", "method.width": 30}, 4),  # layers and softmax
    "stack of two phases": (DTP, 6),  # inverses; layers and output
    "blocks": ({"method.num_blocks": 3}, 3 + 3),  # and a pass of the readout for each of them
    "one network": ({"method.name": "ct"}, 1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mini_batch_is_an_update_of_every_unit(name, monkeypatch):
    """With updates that take a second each, whatever number of them is timed.

    The first update of a stack is not timed: that of lg-fg-a takes two seconds more than others.
    """
    changes, updates = SETTINGS[name]
    made, plain = 0, Trainer.step

    def step(trainer: Trainer) -> Any:
        nonlocal made
        made += 1
        return plain(trainer)

    def seconds(work: Any, synchronize: Any) -> float:
        before = made
        assert before or "stack" not in name
        work()
        return float(made - before)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(estimate, "_fastest", seconds)
    config = replace(RunConfig(), {"train.batch_size": 8, "train.epochs": 5, **changes})
    assert estimate._batch(config, TASK, NOISE) == updates


@pytest.mark.parametrize(("seconds", "calls"), [([0.5, 0.3, 0.2, 0.4], 4), ([5.0], 1)])
def test_a_call_that_takes_long_is_timed_once(seconds, calls, monkeypatch):
    """On a clock that each call moves; of short calls the first is not counted."""
    now, left = 0.0, list(seconds)

    def work() -> None:
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now)
    assert estimate._fastest(work, lambda: None) == pytest.approx(min(seconds))
    assert len(seconds) - len(left) == calls
