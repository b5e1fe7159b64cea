"""Every method on MNIST in a few minutes of one core each: accuracy, time per epoch, memory.

Each recipe is trained by ``noprop train`` in a process of its own, one worker of one thread, and
scored on the test part; nothing is chosen by it.

    python studies/methods.py                # measure, and print the table
    python studies/methods.py --only ct fm
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from study import Line, Study, markdown

# Epochs of about equal work: DT and backprop have ten networks of the size of CT's one. Chains of
# CT and FM have 100 steps, since with 1000 the scoring would take most of the time.
SHORT = ["--steps", "100"]
RUNS: dict[str, list[str]] = {
    "dt": ["mnist-dt", "--epochs", "1"],
    "backprop": ["mnist-backprop", "--epochs", "1"],
    "ct": ["mnist-ct", "--epochs", "8", *SHORT],
    "ct-best": ["mnist-ct-best", "--epochs", "8", *SHORT],
    "fm": ["mnist-fm", "--epochs", "8", *SHORT],
    "fm-best": ["mnist-fm-best", "--epochs", "8", *SHORT],
    # 48 of its 421 mini-batches, with a thousand steps forward and backward for each; the
    # validation part, whose loss takes part of an epoch's time, is reduced in proportion.
    "adjoint": [
        *("mnist-adjoint", "--epochs", "1"),
        *("--train-size", "6144", "--validation", "0.01138"),
    ],
}
FIELDS = ["--workers", "1", "--runs", "1", "--seed", "0", "--quiet", "--json"]


def measure(key: Line) -> Iterator[Line]:
    """Run ``noprop train`` and return its results."""
    arguments = [*RUNS[key["name"]], *FIELDS]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "noprop", "train", *arguments, "--run", f"{folder}/run"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    results = json.loads(done.stdout)
    results.pop("run")
    yield {"command": arguments, "results": results}


def table(lines: list[Line]) -> str:
    """Return test accuracy in %, seconds of one core for an epoch of 54,000 images, peak memory."""
    rows = []
    for line in lines:
        found, command = line["results"], line["command"]
        epochs = float(command[2])
        if "--train-size" in command:
            epochs *= float(command[command.index("--train-size") + 1]) / 54_000
        modes = [found["modes"].get(m) for m in ("single", "samples", "path-fitted", "mean")]
        cells = [f"{mode['accuracy']:.2f}" if mode else "" for mode in modes]
        seconds, memory = found["training"]["seconds"], found["training"]["peak_memory_mb"]
        cells += [f"{seconds / epochs:.0f}", f"{memory:.0f}"]
        rows.append([line["name"], f"{epochs:.3g}", *cells])
    head = ["method", "epochs", "one chain", "5 chains", "path average", "mean chain"]
    return markdown([*head, "s / epoch", "MB"], rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    study = Study(__doc__, "methods-mnist.jsonl", variants=RUNS)
    options = study.parse()
    study.measure(({"name": name} for name in options.only), measure)
    print(table(study.lines()))


if __name__ == "__main__":
    main()
