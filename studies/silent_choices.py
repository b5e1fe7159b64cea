"""What we chose where the paper is silent, against its alternatives, on the validation part.

Every variant changes a field or two of a recipe; each is trained from several seeds for a short
while and scored on the validation part alone: the test part is never read. A seed also draws the
split, so variants of one seed see the same examples, and differences are taken seed by seed. A line
of JSON per run is appended to ``--out``, and a run whose line is there is not made again.

    python studies/silent_choices.py mnist --seeds 2
    python studies/silent_choices.py mnist --table    # what was found so far, as Markdown
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noprop.api import join
from noprop.build import load_data
from noprop.config import replace
from noprop.evaluate import choose_weights, evaluate
from noprop.machine import commit_of_package
from noprop.model import Model
from noprop.recipes import RECIPES
from noprop.run.runs import train_run

OURS = "ours"
# A minute or less of one core each. Of CT and FM, which mostly answer by the mean chain, one chain.
COMMON: dict[str, Any] = {"train.workers": 1, "train.threads": 1, "evaluation.runs": 1}
DATA: dict[str, dict[str, Any]] = {
    "mnist": {"data.train_size": 3000, "data.validation": 0.05},
    "digits": {"data.validation": 0.3},
}
LENGTH: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {
        "dt": {"train.epochs": 2},
        "ct": {"train.epochs": 10, "method.steps": 50, "evaluation.samples": 1},
        "fm": {"train.epochs": 10, "method.steps": 50, "evaluation.samples": 1},
    },
    "digits": {
        "dt": {"train.epochs": 5},
        "ct": {"train.epochs": 40, "method.steps": 50, "evaluation.samples": 1},
        "fm": {"train.epochs": 40, "method.steps": 50, "evaluation.samples": 1},
    },
}

INPUTS: dict[str, dict[str, Any]] = {
    "pixels in 0..1": {"data.normalization": "unit"},
    "pixels in -1..1": {"data.normalization": "symmetric"},
}
DROPOUT: dict[str, dict[str, Any]] = {
    "no dropout": {"method.dropout": 0.0},
    "dropout of channels": {"method.dropout_kind": "channel"},
}
TIME: dict[str, dict[str, Any]] = {
    "time scale 1": {"method.time_scale": 1.0},
    "time scale 100": {"method.time_scale": 100.0},
}
DECOUPLED = {"AdamW": {"train.optimizer": "adamw"}}
NO_DECAY: dict[str, dict[str, Any]] = {"no weight decay": {"train.weight_decay": 0.0}}
RANDOM_START = {"readout from random": {"method.readout_start": "random"}}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dt": {
        OURS: {},
        "ε = 1e-8": {"method.epsilon": 1e-8},
        "ε = 1e-3": {"method.epsilon": 1e-3},
        "ε = 1e-2": {"method.epsilon": 1e-2},
        **DROPOUT,
        "Adam (L2)": {"train.optimizer": "adam"},
        **NO_DECAY,
        **INPUTS,
        **RANDOM_START,
    },
    "ct": {OURS: {}, **DECOUPLED, **NO_DECAY, **TIME, **INPUTS, **RANDOM_START},
    "fm": {
        OURS: {},
        "σ = 0.01": {"method.path_sigma": 0.01},
        "σ = 0.1": {"method.path_sigma": 0.1},
        "σ = 0.5": {"method.path_sigma": 0.5},
        **DECOUPLED,
        **NO_DECAY,
        **TIME,
    },
}


def use_batch_statistics(model: Model) -> None:
    """Let batch norm take mean and variance from what it is given, as in training."""
    for block in model.method.units:
        for layer in block.module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean = layer.running_var = None


# Of a model trained as ours, and then read otherwise.
READINGS: dict[str, dict[str, Callable[[Model], None]]] = {
    "dt": {"batch norm by the batch at inference": use_batch_statistics}
}


def measure(config: Any, method: str, variant: str, data_dir: Path | None) -> Iterator[Any]:
    """Train one variant; yield its name and scores, and those of other readings of it."""
    data = load_data(config, data_dir)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        config = join(folder, config, data)
        began = time.monotonic()
        model = train_run(folder, config, data, lambda event: None)
        seconds = round(time.monotonic() - began, 1)
    readings = READINGS.get(method, {}) if variant == OURS else {}
    for name, change in {variant: lambda model: None, **readings}.items():
        change(model)
        choose_weights(model, data.validation)
        results = evaluate(model, data.validation)
        modes = {"single": "single", "default": results["default"], "mean": "mean"}
        yield (
            name,
            {
                kind: {k: round(results["modes"][m][kind], 5) for k, m in modes.items()}
                for kind in ("accuracy", "log_loss")
            }
            | {"seconds": seconds, "validation_examples": len(data.validation)},
        )


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error, NaN of one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    squares = sum((v - mean) ** 2 for v in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))


def table(lines: list[dict[str, Any]], variants: list[str]) -> str:
    """A row for each variant: accuracy in %, log-loss in nats, and what it is ahead of ours."""
    heads = ("n", "one chain", "default", "mean chain", "log-loss", "one chain - ours", "default -")
    rows = [f"| variant | {' | '.join(heads)} ours |", "|---" * (len(heads) + 1) + "|"]
    ours = {e["seed"]: e for e in lines if e["variant"] == OURS}
    for variant in variants:
        mine = [e for e in lines if e["variant"] == variant]
        if not mine:
            continue
        columns = [[e["accuracy"][mode] for e in mine] for mode in ("single", "default", "mean")]
        cells = [shown(c) for c in columns] + [shown([e["log_loss"]["default"] for e in mine], 3)]
        for mode in ("single", "default"):
            both = [e for e in mine if e["seed"] in ours and variant != OURS]
            gain = [e["accuracy"][mode] - ours[e["seed"]]["accuracy"][mode] for e in both]
            cells.append(shown(gain, sign="+") if gain else "")
        rows.append(f"| {variant} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def shown(values: list[float], digits: int = 2, sign: str = "") -> str:
    """Mean ± standard error."""
    mean, error = mean_and_error(values)
    mean = round(mean, digits) + 0.0  # never -0.00
    return f"{mean:{sign}.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def main() -> None:
    """Measure what is not measured yet, seed after seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", choices=tuple(DATA))
    parser.add_argument("--methods", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0 [2]")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/silent-choices.jsonl"))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    known = {name for method in arguments.methods for name in VARIANTS[method]}
    if unknown := set(arguments.only or ()) - known:
        parser.error(f"--only: no such variant: {', '.join(sorted(unknown))}")
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)

    def there(key: dict[str, Any]) -> list[dict[str, Any]]:
        lines = [json.loads(t) for t in out.read_text().splitlines()] if out.exists() else []
        return [e for e in lines if all(e[k] == v for k, v in key.items())]

    def key_of(method: str) -> dict[str, Any]:
        common = COMMON | DATA[arguments.dataset] | LENGTH[arguments.dataset][method]
        return {"recipe": f"{arguments.dataset}-{method}", "common": common}

    about = {"torch": torch.__version__, "commit": commit_of_package()}
    wanted = [
        (seed, method, name)
        for seed in range(0 if arguments.table else arguments.seeds)
        for method in arguments.methods
        for name in VARIANTS[method]
        if name in (arguments.only or known)
    ]
    for seed, method, name in wanted:
        key: dict[str, Any] = key_of(method) | {"seed": seed}
        if name in [e["variant"] for e in there(key)]:
            continue
        changes = VARIANTS[method][name]
        fields = key["common"] | changes | {"train.seed": seed}
        config = replace(RECIPES[key["recipe"]], fields)
        for variant, found in measure(config, method, name, arguments.data_dir):
            line = key | {"variant": variant, "changes": changes} | found | about
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(key["recipe"], seed, variant, found, flush=True)
    for method in arguments.methods:
        names = [
            n
            for v in VARIANTS[method]
            for n in (v, *(READINGS.get(method, {}) if v == OURS else ()))
        ]
        print(f"\n{arguments.dataset}-{method}\n\n{table(there(key_of(method)), names)}")


if __name__ == "__main__":
    main()
