"""Time to an accuracy: recipes trained anew with ever more epochs until one reaches it.

A recipe's blocks are trained one after the other, so a run shows its accuracy only at its end; each
row is a run of its own, from its first update to its last. The accuracy that counts is of the
validation part, by the default prediction.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noprop.api import load_data, train
from noprop.bench.settings import Settings
from noprop.config import replace
from noprop.recipes import find_recipe
from noprop.run.metrics import read_metrics

__all__ = ["EPOCHS", "measure_accuracy"]

EPOCHS = (1, 2, 3, 5, 8, 12)
Progress = Callable[[str], None]


def measure_accuracy(
    settings: Settings,
    target: float,
    data_dir: Path | None,
    found: dict[str, Any],
    progress: Progress,
) -> None:
    """Of each method: epochs, seconds of training and accuracy of the runs up to the target's.

    ``images_seen`` is how many images passed through every block, by which the plain loop's time
    can be told from its speed.

    Args:
        settings: the benchmark's.
        target: accuracy to reach, percent.
        data_dir: the first place to look for data.
        found: filled with the rows.
        progress: called with what is being done.
    """
    found |= {"target": target, "methods": {}}
    for method in settings.methods:
        rows: list[dict[str, Any]] = []
        found["methods"][method] = rows
        config = find_recipe(f"{settings.dataset}-{method}")
        data = load_data(config, data_dir)
        for epochs in EPOCHS:
            progress(f"accuracy {method}: {epochs} epochs")
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                few = {"train.epochs": epochs, "train.device": "cpu", "evaluation.runs": 1}
                changes = {**few, "train.workers": settings.workers}
                model = train(replace(config, changes), folder=run, data=data)
                results = model.evaluate(data_dir, "validation")
                test = model.evaluate(data_dir)
                seconds = training_seconds(run)
            mode = results["default"]
            rows.append(
                {
                    "epochs": epochs,
                    "seconds": seconds,
                    "validation_accuracy": results["modes"][mode]["accuracy"],
                    "test_accuracy": test["modes"][mode]["accuracy"],
                    "prediction": mode,
                    "images_seen": epochs * len(data.train),
                }
            )
            progress(f"accuracy {method}: {rows[-1]['validation_accuracy']:.2f} %")
            if rows[-1]["validation_accuracy"] >= target:
                break


def training_seconds(run: Path) -> float:
    """From the start of the workers to the end of the last."""
    times = {e["event"]: e["time"] for e in read_metrics(run)}  # the last of each kind
    return times["trained"] - times["started"]
