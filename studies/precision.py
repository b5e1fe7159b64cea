"""Whether bf16 costs accuracy: the same runs in float32 and bf16, on the validation part.

    python studies/precision.py --dataset mnist --epochs 1
    python studies/precision.py --table

Each line of results/precision.jsonl is one run; those that are there are not made again.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import noprop
from noprop.build import load_data
from noprop.config import replace
from noprop.machine import describe_machine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "precision.jsonl"
PRECISIONS = ("float32", "bf16")
KEY = ("dataset", "epochs", "precision", "seed")


def measure(
    dataset: str, epochs: int, precision: str, seed: int, data_dir: Path | None
) -> dict[str, Any]:
    """One run of NoProp-DT."""
    changes = {
        "train.epochs": epochs,
        "train.precision": precision,
        "train.seed": seed,
        "train.device": "cpu",
    }
    config = replace(noprop.RECIPES[f"{dataset}-dt"], changes)
    data = load_data(config, data_dir)
    with tempfile.TemporaryDirectory() as folder:
        model = noprop.train(config, folder=Path(folder) / "run", data=data)
    results = model.evaluate(data_dir, part="validation")
    modes = {k: round(v["accuracy"], 4) for k, v in results["modes"].items()}
    about = describe_machine()
    return {
        "dataset": dataset,
        "epochs": epochs,
        "precision": precision,
        "seed": seed,
        "accuracy": modes,
        "log_loss": round(results["modes"][results["default"]]["log_loss"], 5),
        "examples": results["examples"],
        "machine": {k: about[k] for k in ("processor", "cores", "torch", "commit")},
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Means and standard errors over seeds; the last column is float32's mean less bf16's."""
    rows = [
        "| runs | prediction | float32 | bf16 | difference |",
        "|---|---|---|---|---|",
    ]
    for dataset, epochs in sorted({(line["dataset"], line["epochs"]) for line in lines}):
        chosen = [x for x in lines if (x["dataset"], x["epochs"]) == (dataset, epochs)]
        for mode in ("single", "path-fitted"):
            means, errors, cells = [], [], []
            for precision in PRECISIONS:
                values = [x["accuracy"][mode] for x in chosen if x["precision"] == precision]
                if len(values) < 2:
                    break
                means.append(statistics.mean(values))
                errors.append(statistics.stdev(values) / math.sqrt(len(values)))
                cells.append(f"{means[-1]:.2f} ± {errors[-1]:.2f}")
            if len(means) < 2:  # not there yet
                continue
            difference = f"{means[0] - means[1]:+.2f} ± {math.hypot(*errors):.2f}"
            what = f"{dataset}, {epochs} epoch{'s' * (epochs > 1)}"
            rows.append(f"| {what} | {mode} | {' | '.join(cells)} | {difference} |")
    return "\n".join(rows)


def main() -> None:
    """Make the runs that are not there yet, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--table", action="store_true", help="print what is there")
    arguments = parser.parse_args()
    lines = [json.loads(x) for x in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {tuple(line[k] for k in KEY) for line in lines}
    for seed in range(0 if arguments.table else arguments.seeds):
        for precision in PRECISIONS:
            run = (arguments.dataset, arguments.epochs, precision, seed)
            if run in done:
                continue
            lines.append(measure(*run, arguments.data_dir))
            with RESULTS.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(*run, lines[-1]["accuracy"]["path-fitted"], flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
