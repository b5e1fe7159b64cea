"""What of a trained cell is scored, on which examples, and with how many chains."""

from pathlib import Path
from typing import Any

import pytest
import torch

from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.paper import measure
from noprop.task import RunData, Task

CONFIG = replace(RunConfig(), {"evaluation.runs": 3, "evaluation.samples": 4})
TASK = Task((1, 1, 1), ("a", "b"), Normalization((0.0,), (1.0,)))


def part(first: int, count: int) -> Examples:
    """Examples told apart by their only pixel."""
    x = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Examples(x, torch.arange(count) % 2)


DATA = RunData(TASK, part(0, 50), part(50, 10), part(60, 20))


@pytest.fixture
def scored(monkeypatch) -> list[tuple[Any, list[int]]]:
    """Models and the pixels that they were scored on; nothing is computed."""
    found: list[tuple[Any, list[int]]] = []

    def evaluate(model: Any, examples: Examples, modes: Any = None) -> dict[str, Any]:
        found.append((model, examples.x.flatten().tolist()))
        numbers = {"single": 1.0, "mean": 2.0, "samples": 3.0}
        wanted = {m: n for m, n in numbers.items() if modes is None or m in modes}
        scores = {m: {"accuracy": n, "accuracy_se": 0.0} for m, n in wanted.items()}
        return {"runs": CONFIG.evaluation.runs, "modes": scores}

    monkeypatch.setattr(measure, "evaluate", evaluate)
    return found


def test_training_accuracy_is_of_single_chains_on_training_images(monkeypatch, tmp_path, scored):
    """As many as there are test images, no image twice; scored once."""
    monkeypatch.setattr(measure, "_read", lambda folder, config, **how: how)
    for _ in range(2):
        found = measure._train(tmp_path, CONFIG, DATA)
        assert found == {"examples": 20, "runs": 3, "accuracy": 1.0, "accuracy_se": 0.0}
    ((how, pixels),) = scored
    assert how == {}
    assert len(set(pixels)) == 20
    assert set(pixels) <= set(range(50))


def test_a_curve_has_each_copy_s_own_seconds_and_accuracy(monkeypatch, tmp_path, scored):
    """Of one chain on the test images, for each epoch of which there is a copy."""
    monkeypatch.setattr(measure, "epochs_kept", lambda folder, config: [2, 4])
    monkeypatch.setattr(
        measure, "kept_model", lambda folder, config, data, epoch: (config, 1.5 * epoch)
    )
    curve = measure._curve(Path(tmp_path), CONFIG, DATA)
    assert curve == [
        {"epoch": epoch, "seconds": 1.5 * epoch, "single": 1.0, "mean": 2.0} for epoch in (2, 4)
    ]
    for config, pixels in scored:
        assert (config.evaluation.runs, config.evaluation.samples) == (1, 1)
        assert pixels == list(range(60, 80))
