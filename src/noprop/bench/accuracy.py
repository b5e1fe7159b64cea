"""Suite ``accuracy``: time to an accuracy, by recipes trained for more and more epochs.

A recipe's blocks are trained one after the other, so a run has an accuracy only at its end. Each
row is a separate run, from its first update to its last. The target is the paper's accuracy unless
given. The runs end when the default prediction is as accurate on the validation part. Every
accuracy on target has a star, also that of one chain, the paper's protocol. The test part is read
once, after the last run. The method ``fast`` is the recipe DATASET-fast; the time of the paper's
recipe for NoProp-DT, by the speed of one of its epochs, is shown with it.
"""

import tempfile
from pathlib import Path
from typing import Any

from noprop.api import train
from noprop.bench.display import INK
from noprop.bench.settings import Settings
from noprop.bench.suites import Progress, Results, Suite
from noprop.config import replace
from noprop.recipes import find_recipe
from noprop.report.tables import duration, table
from noprop.run.metrics import read_metrics
from noprop.run.run import Run
from noprop.task import load_data

__all__ = ["SUITE"]

EPOCHS = (1, 2, 3, 5, 8, 12, 20, 30)


def check(settings: Settings) -> None:
    """Load the data, so that missing data is reported before anything is measured."""
    _ = settings.accuracy_target
    for method in settings.methods:
        load_data(find_recipe(f"{settings.dataset}-{method}"), settings.data_dir)


def measure(settings: Settings, results: Results, progress: Progress) -> None:
    """Measure epochs, seconds of training and accuracy of runs up to the first on target.

    ``images_seen`` is the number of images that passed through every block; it gives the plain
    loop's time from its speed.
    """
    target = settings.accuracy_target
    found = results["accuracy"] = {"target": target, "methods": {}}
    for method in settings.methods:
        rows: list[dict[str, Any]] = []
        found["methods"][method] = rows
        config = find_recipe(f"{settings.dataset}-{method}")
        data = load_data(config, settings.data_dir)
        full = config.train.epochs
        rounds = [epochs for epochs in EPOCHS if epochs < full]
        rounds += [full] if full <= EPOCHS[-1] else []
        for epochs in rounds:
            progress(f"accuracy {method}: {epochs} epochs")
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                few = {"train.epochs": epochs, "train.device": "cpu", "evaluation.runs": 1}
                changes = {**few, "train.workers": settings.workers}
                model = train(replace(config, changes), folder=run, data=data)
                validation = model.evaluate(settings.data_dir, "validation")
                mode, modes = validation["default"], validation["modes"]
                reached = modes[mode]["accuracy"] >= target
                row = {
                    "epochs": epochs,
                    "seconds": training_seconds(run),
                    "validation_accuracy": modes[mode]["accuracy"],
                    "validation_accuracy_of_one_chain": modes["single"]["accuracy"],
                    "prediction": mode,
                    "images_seen": epochs * len(data.train),
                }
                if reached or epochs == rounds[-1]:
                    test = model.evaluate(settings.data_dir)["modes"]
                    row["test_accuracy"] = test[mode]["accuracy"]
                    row["test_accuracy_of_one_chain"] = test["single"]["accuracy"]
            rows.append(row)
            progress(f"accuracy {method}: {row['validation_accuracy']:.2f} %")
            if reached:
                break
    if "fast" in settings.methods:
        found["paper"] = _paper_time(settings, progress)


def _paper_time(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Return the epochs of the paper's recipe for NoProp-DT, and the measured time of one."""
    config = find_recipe(f"{settings.dataset}-dt")
    progress(f"accuracy {config.recipe}: the time of an epoch")
    one = {"train.epochs": 1, "train.device": "cpu", "train.workers": settings.workers}
    data = load_data(config, settings.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(replace(config, one), folder=Path(folder) / "run", data=data)
        run.train()
        seconds = training_seconds(run.folder)
    return {"recipe": config.recipe, "epochs": config.train.epochs, "epoch_seconds": seconds}


def training_seconds(run: Path) -> float:
    """Return the time from the start of the workers to the end of the last one."""
    times = {e["event"]: e["time"] for e in read_metrics(run)}  # the last of each kind
    return times["trained"] - times["started"]


def text(results: Results) -> str:
    """Return a row for each run, with the plain loop's time if ``training`` was measured too."""
    found, rows = results["accuracy"], []
    trained = results.get("training", {})
    for method, runs in found["methods"].items():
        for run in runs:
            plain = "-"
            if method in trained:
                speed = trained[method]["images_per_second"]["plain"]["median"]
                plain = duration(run["images_seen"] / speed)
            cells = [_accuracies(run, "validation", found["target"]), _accuracies(run, "test")]
            rows.append([method, str(run["epochs"]), duration(run["seconds"]), plain, *cells])
    head = ["method", "epochs", "training", "plain, by its speed"]
    head += [f"{part} %, default (one chain)" for part in ("validation", "test")]
    lines = [
        f"time to {found['target']:g} % of the validation part (*)",
        table(head, rows),
    ]
    if paper := found.get("paper"):
        whole = duration(paper["epochs"] * paper["epoch_seconds"])
        lines.append(
            f"{paper['recipe']}: its {paper['epochs']} epochs would take {whole}, by the "
            f"{duration(paper['epoch_seconds'])} of one"
        )
    return "\n".join(lines)


def _accuracies(run: dict[str, Any], part: str, target: float | None = None) -> str:
    """Return the accuracy of the default prediction, with that of one chain if there is one.

    Those on target have a star.
    """

    def shown(value: float) -> str:
        return f"{value:.2f}" + " *" * (target is not None and value >= target)

    if (accuracy := run.get(f"{part}_accuracy")) is None:
        return ""
    one = run.get(f"{part}_accuracy_of_one_chain")
    return shown(accuracy) + ("" if one is None else f" ({shown(one)})")


def figure(figure: Any, results: Results) -> None:
    """Draw the accuracy over the time of training."""
    axes, found = figure.subplots(), results["accuracy"]
    for method, runs in found["methods"].items():
        seconds = [run["seconds"] for run in runs]
        axes.plot(seconds, [run["validation_accuracy"] for run in runs], "o-", label=method)
    axes.axhline(found["target"], color=INK["plain"], linewidth=1)
    axes.set_xlabel("seconds of training, each point a run of its own")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title(f"time to {found['target']:g} %")
    axes.legend()


SUITE = Suite(
    steps=lambda settings: 2 * len(EPOCHS) * len(settings.methods) + ("fast" in settings.methods),
    measure=measure,
    table=text,
    figures={"accuracy": figure},
    check=check,
)
