"""Every method at equal training time: accuracy on the test part after so many minutes of one core.

Each recipe is trained by ``noprop train`` in a process of its own, one worker of one thread. How
many epochs fit is found by two short trials, in seconds of the processor, so that other work on
the machine does not matter. Further seeds train as long as the first. The test part is scored
once, by ``noprop evaluate``; nothing is chosen by it.

    python studies/methods.py mnist --minutes 4 --seeds 3     # measure, and print the table
    python studies/methods.py cifar10 --only dt fm greedy
"""

import json
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
TRIALS = (1_000, 4_000)  # images; the difference is free of the time to start
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


def seconds_per_image(arguments: list[str]) -> float:
    """Return the seconds of the processor to train with one image once."""
    taken = []
    for images in TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            short = [*arguments, "--epochs", "1", "--train-size", str(images)]
            taken.append(trained(short, folder))
    return (taken[1] - taken[0]) / (TRIALS[1] - TRIALS[0])


def training_images(dataset: str) -> int:
    """Return how many images of a data set are not held out."""
    return round(0.9 * SOURCES[dataset].sizes[0])


def extent(seconds: float, each: float, images: int) -> list[str]:
    """Return as many epochs as fit, or one epoch of as many images."""
    epochs = int(seconds / each / images)
    if epochs:
        return ["--epochs", str(epochs)]
    return ["--epochs", "1", "--train-size", str(int(seconds / each))]


def measure(key: Line, each: float | None) -> Iterator[Line]:
    """Train for the given minutes, and score the test part.

    Args:
        key: What to measure.
        each: Seconds to train with one image, if another seed has measured it.
    """
    kind, more = METHODS[key["method"]]
    recipe = [f"{key['dataset']}-{kind}", *more]
    each = each or seconds_per_image(recipe)
    length = extent(60 * key["minutes"], each, training_images(key["dataset"]))
    with tempfile.TemporaryDirectory() as folder:
        command = [*recipe, *length, "--seed", str(key["seed"])]
        seconds = trained(command, folder)
        cost = training_cost(Path(folder) / "run")
        results, _ = noprop("evaluate", f"{folder}/run", "--set", "evaluation.runs=1")
    yield {
        "command": command,
        "cpu_seconds": seconds,
        "seconds_per_image": each,
        "peak_memory_mb": cost["peak_memory_mb"],
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
        epochs = float(command[command.index("--epochs") + 1])
        if "--train-size" in command:
            epochs = int(command[command.index("--train-size") + 1]) / images
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
        others = study.lines(**run, method=key["method"])
        return measure(key, others[0]["seconds_per_image"] if others else None)

    study.measure(keys, of_seed)
    if lines := study.lines(**run):
        print(table(lines))


if __name__ == "__main__":
    main()
