"""What each step from the paper's NoProp-DT to the fast recipes gains, on the validation part.

Every row adds one change to the rows above it, and is trained for as many epochs.

    python studies/recipes.py cifar10 --epochs 10 --blocks 4
    python studies/recipes.py cifar10 --table      # the results so far, as Markdown
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from noprop.config import replace
from noprop.recipes import CROPS, RECIPES
from study import Line, Study, markdown, score, train

MODES = {
    "single": "one chain",
    "path-fitted": "path average",
    "mean": "mean chain",
    "mean-path-fitted": "mean chain, path",
}


LABELS = {
    "one-cycle": "one-cycle rate",
    "augmentation": "random crops, and flips but for digits",
    "conv-bn": "`conv-bn`",
    "dropout 0.05": "dropout 0.05 in place of 0.2",
    "EMA": "EMA 0.999",
}


def steps(dataset: str) -> dict[str, dict[str, Any]]:
    """Return the fields of each row, those of the rows above it included."""
    added: dict[str, dict[str, Any]] = {
        "the paper's": {},
        "one-cycle": {"train.schedule": "one-cycle", "train.lr": 5e-3},
        "augmentation": CROPS[dataset],
        "cross-entropy": {
            "method.objective": "cross-entropy",
            "method.weighting": "uniform",
            "method.eta": 2.0,
        },
        "exact evidence": {"method.evidence": "exact"},
        "networks read x alone": {"method.network_reads": "x"},
        "training on noise": {"method.train_levels": "noise"},
        "conv-bn": {"method.encoder": "conv-bn"},
        "dropout 0.05": {"method.dropout": 0.05},
        "EMA": {"train.ema": 0.999},
    }
    return dict(zip(added, accumulate(added.values(), lambda a, b: a | b), strict=True))


def table(lines: list[Line]) -> str:
    """Return accuracies in % and the log-loss in nats on the validation part, a row a step."""
    rows = []
    for line in lines:
        modes = [line["modes"][mode] for mode in MODES]
        loss = score(line["modes"]["path-fitted"], "log_loss", 3)
        name = LABELS.get(line["step"], line["step"])
        rows.append([name, *map(score, modes), loss, f"{line['seconds']:.0f}"])
    return markdown(["step", *MODES.values(), "log-loss, path average", "seconds"], rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    study = Study(__doc__, "recipes.jsonl", variants=steps("mnist"))
    study.parser.add_argument("dataset", choices=tuple(CROPS))
    study.parser.add_argument("--epochs", type=int, default=10)
    study.parser.add_argument("--blocks", type=int, default=4, help="T")
    options = study.parse()
    run = {"dataset": options.dataset, "T": options.blocks, "epochs": options.epochs}
    fields = steps(options.dataset)
    common = {
        "method.num_blocks": options.blocks,
        "train.epochs": options.epochs,
        "evaluation.runs": 2,
    }

    def measure(key: Line) -> Iterator[Line]:
        config = replace(RECIPES[f"{options.dataset}-dt"], fields[key["step"]] | common)
        scored = train(config, options.data_dir)
        yield {
            "modes": scored.results["modes"],
            "seconds": scored.seconds,
            "n": len(scored.validation),
        }

    study.measure([run | {"step": name} for name in options.only], measure)
    if lines := study.lines(**run):
        print(table(lines))


if __name__ == "__main__":
    main()
