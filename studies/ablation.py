"""What weighting, objective, schedule and the rest do to each method, on the validation part.

Every variant changes some fields of a recipe, is trained for a few epochs and scored on the
validation part alone, in every way of predicting; the test part is never read. A line of JSON per
run is appended to ``--out``, and a run whose line is there is not made again.

    python studies/ablation.py mnist ct --epochs 2
    python studies/ablation.py mnist ct --table      # what was found so far, as Markdown
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from noprop.api import join
from noprop.build import load_data
from noprop.config import replace
from noprop.embeddings import separation
from noprop.evaluate import choose_weights, evaluate
from noprop.machine import commit_of_package
from noprop.recipes import RECIPES
from noprop.run.runs import train_run

CE = {"method.objective": "cross-entropy"}
UNIFORM = {"method.weighting": "uniform"}
MIN_SNR = {"method.weighting": "min-snr"}
D20 = {"method.embedding": "orthogonal", "method.dim": 20, "method.learned": True}
PROTOTYPES = {"method.embedding": "prototype", "method.learned": True}


def ends(noise: float, clean: float, room: float = 3.0) -> dict[str, Any]:
    """Where γ begins and ends, and how far the ends may move."""
    names = ("noise", "clean", "room")
    return {f"method.gamma_{n}": v for n, v in zip(names, (noise, clean, room), strict=True)}


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ct": {
        "the paper's": {},
        "uniform": UNIFORM,
        "min-SNR": MIN_SNR,
        "cross-entropy": CE,
        "cross-entropy, uniform": CE | UNIFORM,
        "cross-entropy, min-SNR": CE | MIN_SNR,
        "linear γ": {"method.schedule": "linear"},
        "cosine": {"method.schedule": "cosine"},
        "η = 0.1": {"method.eta": 0.1},
        "η = 10": {"method.eta": 10.0},
        "γ from 3 to -3": ends(3, -3, 1.0),
        "γ from 10 to -10": ends(10, -10),
        "stratified times": {"method.time_sampling": "stratified"},
        "learned d = 20": D20,
        "cross-entropy, uniform, linear γ": CE | UNIFORM | {"method.schedule": "linear"},
        "cross-entropy, uniform, cosine": CE | UNIFORM | {"method.schedule": "cosine"},
        "cross-entropy, uniform, γ from 6 to -2": CE | UNIFORM | ends(6, -2, 1.0),
        "cross-entropy, uniform, γ from 6 to -4": CE | UNIFORM | ends(6, -4, 2.0),
        "cross-entropy, uniform, γ from 8 to -2": CE | UNIFORM | ends(8, -2, 1.0),
        "uniform, γ from 6 to -2": UNIFORM | ends(6, -2, 1.0),
        "no weight decay": {"train.weight_decay": 0.0},
        "uniform, η = 10": UNIFORM | {"method.eta": 10.0},
        "cross-entropy, uniform, no weight decay": CE | UNIFORM | {"train.weight_decay": 0.0},
        "cross-entropy, uniform, η = 10, γ from 6 to -2": (
            CE | UNIFORM | {"method.eta": 10.0} | ends(6, -2, 1.0)
        ),
        "cross-entropy, uniform, η = 10, learned d = 20": CE | UNIFORM | {"method.eta": 10.0} | D20,
        "Euler": {"method.sampler": "euler"},
        "Heun": {"method.sampler": "heun"},
        "cross-entropy, uniform, Euler": CE | UNIFORM | {"method.sampler": "euler"},
        "cross-entropy, uniform, Heun": CE | UNIFORM | {"method.sampler": "heun"},
        "cross-entropy, uniform, γ from 3 to -3": CE | UNIFORM | ends(3, -3, 1.0),
        "cross-entropy, uniform, stratified times": (
            CE | UNIFORM | {"method.time_sampling": "stratified"}
        ),
        "cross-entropy, uniform, learned d = 20": CE | UNIFORM | D20,
        "cross-entropy, uniform, η = 10": CE | UNIFORM | {"method.eta": 10.0},
    },
    "fm": {
        "the paper's": {},
        "σ = 0.1": {"method.path_sigma": 0.1},
        "σ = 0.5": {"method.path_sigma": 0.5},
        "anchor": {"method.anchor": "always"},
        "learned d = 20": D20,
        "learned d = 20, no anchor": D20 | {"method.anchor": "never"},
        "no weight decay": {"train.weight_decay": 0.0},
        "anchor, no weight decay": {"method.anchor": "always", "train.weight_decay": 0.0},
        "anchor, σ = 0.5": {"method.anchor": "always", "method.path_sigma": 0.5},
    },
    "dt": {
        "the paper's": {},
        "cross-entropy": CE,
        "cross-entropy, uniform": CE | UNIFORM,
        "uniform": UNIFORM,
        "η = 1": {"method.eta": 1.0},
        **{
            f"{kind}, {order}, readout from {start}": {
                "data.train_size": 12_800,
                "train.order": order,
                "method.readout_start": start,
                **changes,
            }
            for kind, changes in (("d = 20", D20), ("prototypes", PROTOTYPES))
            for order in ("sequential", "parallel")
            for start in ("nearest", "random")
        },
        "prototypes, sequential, readout from random, γ shifted": {
            "data.train_size": 12_800,
            "method.gamma_shift": "auto",
            **PROTOTYPES,
        },
    },
}


def measure(recipe: str, changes: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """Train one variant and score it on the validation part."""
    config = replace(RECIPES[recipe], changes)
    data = load_data(config, data_dir)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        config = join(folder, config, data)
        began = time.monotonic()
        model = train_run(folder, config, data, lambda event: None)
        trained = time.monotonic() - began
    choose_weights(model, data.validation)
    results = evaluate(model, data.validation)
    found = {k: results[k] for k in ("modes", "evaluations", "calibration_error")}
    return {
        **found,
        "facts": {k: v for k, v in model.method.facts().items() if not isinstance(v, list)},
        "least_distance": separation(model.method.embedding.weight)[1],
        "train_seconds": round(trained, 1),
        "validation_examples": len(data.validation),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Accuracy in % on the validation part, a row for each variant."""
    modes = ("single", "samples", "path-fitted", "mean", "mean-path-fitted")
    heads = ("one chain", "5 chains", "path average", "mean chain", "mean chain, path")
    distances = any("least_distance" in line for line in lines)
    heads += ("least distance",) * distances
    rows = [f"| variant | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for line in lines:
        best = max(line["modes"][m]["accuracy"] for m in modes)
        cells = []
        for mode in modes:
            value = line["modes"][mode]["accuracy"]
            cells.append(f"**{value:.2f}**" if value == best else f"{value:.2f}")
        if distances:
            cells.append(f"{line['least_distance']:.3f}" if "least_distance" in line else "")
        rows.append(f"| {line['variant']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is not measured yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=("digits", "mnist", "cifar10", "cifar100"))
    parser.add_argument("method", choices=tuple(VARIANTS))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="T of inference, not for dt [100]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/ablation.jsonl"))
    parser.add_argument(
        "--table", action="store_true", help="print what is there and measure nothing"
    )
    arguments = parser.parse_args()
    recipe = f"{arguments.dataset}-{arguments.method}"
    common: dict[str, Any] = {
        "train.epochs": arguments.epochs,
        "train.seed": arguments.seed,
        "evaluation.runs": 1,
    }
    if arguments.method != "dt":
        common["method.steps"] = arguments.steps
    key = {"recipe": recipe, "common": common}
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    if unknown := set(arguments.only or ()) - set(VARIANTS[arguments.method]):
        parser.error(f"--only: no such variant: {', '.join(sorted(unknown))}")
    for name, changes in VARIANTS[arguments.method].items():
        lines = [json.loads(t) for t in out.read_text().splitlines()] if out.exists() else []
        done = [e for e in lines if all(e[k] == v for k, v in key.items())]
        if arguments.table:
            print(table(done))
            return
        if name in [e["variant"] for e in done] or (arguments.only and name not in arguments.only):
            continue
        found = measure(recipe, common | changes, arguments.data_dir)
        about = {"torch": torch.__version__, "commit": commit_of_package()}
        line = {**key, "variant": name, "changes": changes, **found, **about}
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(table([line]).splitlines()[-1], f"{found['train_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
