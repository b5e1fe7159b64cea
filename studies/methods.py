"""Every method on MNIST in a few minutes of one core each: accuracy, time per epoch, memory.

Each recipe is trained by ``noprop train`` in a process of its own, one worker of one thread, and
scored on the test part; nothing is chosen here. A line of JSON per recipe is appended to ``--out``,
and one that is there is not made again.

    python studies/methods.py                # measure, and print the table
    python studies/methods.py --only ct fm
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from noprop.machine import commit_of_package

# Epochs of about equal work: DT and backprop have ten networks of the size of CT's one. Chains of
# CT and FM have 100 steps here and not 1000, with which the scoring would take most of the time.
SHORT = ["--steps", "100"]
RUNS: dict[str, list[str]] = {
    "dt": ["mnist-dt", "--epochs", "1"],
    "backprop": ["mnist-backprop", "--epochs", "1"],
    "ct": ["mnist-ct", "--epochs", "8", *SHORT],
    "ct-best": ["mnist-ct-best", "--epochs", "8", *SHORT],
    "fm": ["mnist-fm", "--epochs", "8", *SHORT],
    "fm-best": ["mnist-fm-best", "--epochs", "8", *SHORT],
    # 48 of its 421 mini-batches, a thousand steps forward and backward for each; the validation
    # part, whose loss is a part of an epoch's time, in proportion.
    "adjoint": [
        *("mnist-adjoint", "--epochs", "1"),
        *("--train-size", "6144", "--validation", "0.01138"),
    ],
}
FIELDS = ["--workers", "1", "--runs", "1", "--seed", "0", "--quiet", "--json"]


def measure(arguments: list[str]) -> dict[str, Any]:
    """What ``noprop train`` finds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "noprop", "train", *arguments, *FIELDS]
        done = subprocess.run(
            [*command, "--run", f"{folder}/run"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    return json.loads(done.stdout)


def table(lines: list[dict[str, Any]]) -> str:
    """Test accuracy in %, seconds of one core for an epoch of 54,000 images, peak memory."""
    heads = "epochs", "one chain", "5 chains", "path average", "mean chain", "s / epoch", "MB"
    rows = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for line in lines:
        found, command = line["results"], line["command"]
        modes = ("single", "samples", "path-fitted", "mean")
        cells = [
            f"{found['modes'][m]['accuracy']:.2f}" if m in found["modes"] else "" for m in modes
        ]
        epochs = float(command[2])
        if "--train-size" in command:
            epochs *= float(command[command.index("--train-size") + 1]) / 54_000
        cost = found["training"]
        seconds = f"{cost['seconds'] / epochs:.0f}"
        memory = f"{cost['peak_memory_mb']:.0f}"
        rows.append(
            f"| {line['name']} | {epochs:.3g} | {' | '.join(cells)} | {seconds} | {memory} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS))
    parser.add_argument("--out", type=Path, default=Path("results/methods-mnist.jsonl"))
    arguments = parser.parse_args()
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or RUNS:
        lines = [json.loads(t) for t in out.read_text().splitlines()] if out.exists() else []
        if name in [line["name"] for line in lines]:
            continue
        results = measure(RUNS[name])
        results.pop("run")
        about = {"torch": torch.__version__, "commit": commit_of_package()}
        line = {"name": name, "command": RUNS[name] + FIELDS, "results": results, **about}
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(table([line]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table([json.loads(t) for t in out.read_text().splitlines()]))


if __name__ == "__main__":
    main()
