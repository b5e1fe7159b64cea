"""Whether bf16 costs accuracy: the same runs in float32 and bf16, on the validation part.

python studies/precision.py --dataset mnist --epochs 1
python studies/precision.py --table
"""

import math
from collections.abc import Iterator
from statistics import mean, stdev

from noprop.config import replace
from noprop.recipes import RECIPES
from study import Line, Study, markdown, mean_and_error, train

PRECISIONS = ("float32", "bf16")


def table(lines: list[Line]) -> str:
    """Return means and standard errors over seeds; the last column is float32's mean - bf16's."""
    rows = []
    for dataset, epochs in sorted({(line["dataset"], line["epochs"]) for line in lines}):
        for mode in ("single", "path-fitted"):
            values = {
                precision: [
                    line["accuracy"][mode]
                    for line in lines
                    if (line["dataset"], line["epochs"]) == (dataset, epochs)
                    and line["precision"] == precision
                ]
                for precision in PRECISIONS
            }
            if min(map(len, values.values())) < 2:  # not measured yet
                continue
            full, half = values.values()
            error = math.hypot(*(stdev(v) / math.sqrt(len(v)) for v in (full, half)))
            difference = f"{mean(full) - mean(half):+.2f} ± {error:.2f}"
            what = f"{dataset}, {epochs} epoch{'s' * (epochs > 1)}"
            rows.append([what, mode, mean_and_error(full), mean_and_error(half), difference])
    return markdown(["runs", "prediction", *PRECISIONS, "difference"], rows)


def main() -> None:
    """Measure what is not measured yet, and print the table of all."""
    study = Study(__doc__, "precision.jsonl", seeds=3)
    study.parser.add_argument("--dataset", default="digits", choices=("digits", "mnist"))
    study.parser.add_argument("--epochs", type=int, default=10)
    options = study.parse()

    def measure(key: Line) -> Iterator[Line]:
        changes = {
            "train.epochs": key["epochs"],
            "train.precision": key["precision"],
            "train.seed": key["seed"],
            "train.device": "cpu",
        }
        config = replace(RECIPES[f"{key['dataset']}-dt"], changes)
        results = train(config, options.data_dir).results
        modes = results["modes"]
        yield {
            "accuracy": {name: round(mode["accuracy"], 4) for name, mode in modes.items()},
            "log_loss": round(modes[results["default"]]["log_loss"], 5),
            "examples": results["examples"],
        }

    key = {"dataset": options.dataset, "epochs": options.epochs}
    wanted = (
        key | {"precision": precision, "seed": seed}
        for seed in range(options.seeds)
        for precision in PRECISIONS
    )
    study.measure(wanted, measure)
    print(table(study.lines()))


if __name__ == "__main__":
    main()
