"""Every method at equal training time: accuracy on the test part after so many minutes of one core.

Each recipe is trained by ``noprop train`` in a process of its own, one worker of one thread. How
many images fit is found by three short trials, in seconds of the processor, so that other work on
the machine does not matter. If they are more than one epoch, each epoch has an equal part of them.
Further seeds train as long as the first. The test part is scored once, by ``noprop evaluate``;
nothing is chosen by it.

    python studies/methods.py mnist --minutes 4 --seeds 3     # measure, and print the table
    python studies/methods.py cifar10 --only dt fm greedy
"""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noprop.data import SOURCES
from noprop.report.tables import duration
from noprop.run.metrics import training_cost
from study import Line, Study, markdown, mean_and_error

# Chains of CT and FM have 100 steps, since with 1000 the scoring would take most of the time.
SHORT = ["--steps", "100"]
METHODS: dict[str, tuple[str, list[str]]] = {
    "dt": ("dt", []),
    "dt, fast recipe": ("fast", []),
    "ct": ("ct", SHORT),
    "ct, best recipe": ("ct-best", SHORT),
    "fm": ("fm", SHORT),
    "fm, best recipe": ("fm-best", SHORT),
    "backprop": ("backprop", []),
    "greedy": ("greedy", []),
    "dfa": ("dfa", []),
    "ff": ("ff", []),
    "dtp": ("dtp", []),
    "lg-fg-a": ("lg-fg-a", []),
}
WITHOUT = {"cifar10": {"ff"}}  # no recipe: its layers are fully connected
# Images and epochs. The difference of two is free of the time to start.
TRIALS = ((1_000, 1), (4_000, 1), (1_000, 3))
MODES = {
    "single": "one chain, or the last answer",
    "samples": "5 chains",
    "path-fitted": "path average",
    "mean": "mean chain",
}


def noprop(*arguments: str) -> tuple[dict[str, Any], float]:
    """Run a command, and return what it prints as JSON and its seconds of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "noprop", *arguments, "--quiet", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout), seconds


def trained(arguments: list[str], folder: str) -> float:
    """Train in a folder with one worker, without evaluation, and return the processor's seconds."""
    fixed = ["--workers", "1", "--threads", "1", "--evaluation", "off"]
    return noprop("train", *arguments, *fixed, "--run", f"{folder}/run")[1]


def costs(arguments: list[str]) -> dict[str, float]:
    """Return the seconds of the processor to train with one image once, and those of an epoch.

    The second are what an epoch costs whatever its length, such as the validation after it.
    """
    taken = []
    for images, epochs in TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            short = [*arguments, "--epochs", str(epochs), "--train-size", str(images)]
            taken.append(trained(short, folder))
    (few, once), (many, _), (_, thrice) = TRIALS
    image = (taken[1] - taken[0]) / (many - few)
    epoch = (taken[2] - taken[0]) / (thrice - once) - few * image
    return {"seconds_per_image": image, "seconds_per_epoch": max(0.0, epoch)}


def training_images(dataset: str) -> int:
    """Return how many images of a data set are not held out."""
    return round(0.9 * SOURCES[dataset].sizes[0])


def extent(seconds: float, cost: dict[str, float], images: int) -> list[str]:
    """Return the fewest epochs that fill the time, and of how many images."""
    image, epoch = cost["seconds_per_image"], cost["seconds_per_epoch"]
    epochs = math.ceil(seconds / (epoch + image * images))
    size = min(images, max(1, int((seconds / epochs - epoch) / image)))
    return ["--epochs", str(epochs), "--train-size", str(size)]


def measure(key: Line, cost: dict[str, float] | None) -> Iterator[Line]:
    """Train for the given minutes, and score the test part.

    Args:
        key: What to measure.
        cost: See :func:`costs`, if another seed has measured it.
    """
    kind, more = METHODS[key["method"]]
    recipe = [f"{key['dataset']}-{kind}", *more]
    cost = cost or costs(recipe)
    length = extent(60 * key["minutes"], cost, training_images(key["dataset"]))
    with tempfile.TemporaryDirectory() as folder:
        command = [*recipe, *length, "--seed", str(key["seed"])]
        seconds = trained(command, folder)
        training = training_cost(Path(folder) / "run")
        results, _ = noprop("evaluate", f"{folder}/run", "--set", "evaluation.runs=1")
    yield cost | {
        "command": command,
        "cpu_seconds": seconds,
        "peak_memory_mb": training["peak_memory_mb"],
        "results": results,
    }


def table(lines: list[Line]) -> str:
    """Return test accuracies in %, the epochs, seconds of one core, and peak memory."""
    rows, images = [], training_images(lines[0]["dataset"])
    for method in METHODS:
        mine = [line for line in lines if line["method"] == method]
        if not mine:
            continue
        cells = []
        for mode in MODES:
            found = [line["results"]["modes"].get(mode) for line in mine]
            cells.append(mean_and_error([m["accuracy"] for m in found]) if all(found) else "")
        command = mine[0]["command"]
        epochs = int(command[command.index("--epochs") + 1])
        if "--train-size" in command:
            epochs *= int(command[command.index("--train-size") + 1]) / images
        seconds = sum(line["cpu_seconds"] for line in mine) / len(mine)
        memory = max(line["peak_memory_mb"] for line in mine)
        sizes = [f"{epochs:.3g}", duration(seconds), f"{memory:.0f}", str(len(mine))]
        rows.append([method, *cells, *sizes])
    return markdown(["method", *MODES.values(), "epochs", "core time", "MB", "seeds"], rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    study = Study(__doc__, "methods.jsonl", seeds=1, variants=METHODS)
    study.parser.add_argument("dataset", choices=("mnist", "fashion-mnist", "cifar10"))
    study.parser.add_argument("--minutes", type=float, default=4, help="of one core [%(default)s]")
    options = study.parse()
    run = {"dataset": options.dataset, "minutes": options.minutes}
    without = WITHOUT.get(options.dataset, set())
    names = [name for name in options.only if name not in without]
    keys = [run | {"seed": s, "method": name} for s in range(options.seeds) for name in names]

    def of_seed(key: Line) -> Iterator[Line]:
        names = ("seconds_per_image", "seconds_per_epoch")
        lines = study.lines(**run, method=key["method"])
        measured = [{n: line[n] for n in names} for line in lines if line.keys() >= set(names)]
        return measure(key, measured[0] if measured else None)

    study.measure(keys, of_seed)
    if lines := study.lines(**run):
        print(table(lines))


if __name__ == "__main__":
    main()
