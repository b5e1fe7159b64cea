"""What weighting, objective, schedule and the rest do to each method, on the validation part.

Every variant changes some fields of a recipe, is trained for a few epochs and scored in every way
of predicting.

    python studies/ablation.py mnist ct --epochs 2
    python studies/ablation.py mnist ct --table      # the results so far, as Markdown
"""

from collections.abc import Iterator
from typing import Any

from noprop.config import replace
from noprop.embeddings import separation
from noprop.recipes import RECIPES
from study import MODES, Line, Study, markdown, train

Fields = dict[str, Any]
LEARNED: Fields = {"method.learned": True}
D20: Fields = {"method.embedding": "orthogonal", "method.dim": 20, **LEARNED}
SMALL: Fields = {"data.train_size": 12_800}


def ends(noise: float, clean: float, room: float) -> Fields:
    """Return the fields of γ's start and end, and of how far these may move."""
    names = ("noise", "clean", "room")
    return {f"method.gamma_{n}": v for n, v in zip(names, (noise, clean, room), strict=True)}


# What a variant's name is made of, and the fields that each part of it changes.
PARTS: dict[str, Fields] = {
    "the paper's": {},
    "cross-entropy": {"method.objective": "cross-entropy"},
    "uniform": {"method.weighting": "uniform"},
    "min-SNR": {"method.weighting": "min-snr"},
    "linear γ": {"method.schedule": "linear"},
    "cosine": {"method.schedule": "cosine"},
    "η = 0.1": {"method.eta": 0.1},
    "η = 1": {"method.eta": 1.0},
    "η = 10": {"method.eta": 10.0},
    "γ from 3 to -3": ends(3, -3, 1.0),
    "γ from 6 to -2": ends(6, -2, 1.0),
    "γ from 6 to -4": ends(6, -4, 2.0),
    "γ from 8 to -2": ends(8, -2, 1.0),
    "γ from 10 to -10": ends(10, -10, 3.0),
    "γ shifted": {"method.gamma_shift": "auto"},
    "stratified times": {"method.time_sampling": "stratified"},
    "learned d = 20": D20,
    "d = 20": D20 | SMALL,
    "prototypes": {"method.embedding": "prototype", **LEARNED, **SMALL},
    "no weight decay": {"train.weight_decay": 0.0},
    "Euler": {"method.sampler": "euler"},
    "Heun": {"method.sampler": "heun"},
    "σ = 0.1": {"method.path_sigma": 0.1},
    "σ = 0.5": {"method.path_sigma": 0.5},
    "anchor": {"method.anchor": "always"},
    "no anchor": {"method.anchor": "never"},
    "sequential": {"train.order": "sequential"},
    "parallel": {"train.order": "parallel"},
    "readout from nearest": {"method.readout_start": "nearest"},
    "readout from random": {"method.readout_start": "random"},
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "ct": (
        *("the paper's", "uniform", "min-SNR", "linear γ", "cosine", "η = 0.1", "η = 10"),
        *("γ from 3 to -3", "γ from 10 to -10", "stratified times", "learned d = 20"),
        *("no weight decay", "Euler", "Heun", "uniform, γ from 6 to -2", "uniform, η = 10"),
        *("cross-entropy", "cross-entropy, min-SNR", "cross-entropy, uniform"),
        *(
            f"cross-entropy, uniform, {part}"
            for part in (
                *("linear γ", "cosine", "η = 10", "γ from 3 to -3", "γ from 6 to -2"),
                *("γ from 6 to -4", "γ from 8 to -2", "stratified times", "learned d = 20"),
                *("no weight decay", "Euler", "Heun"),
                *("η = 10, γ from 6 to -2", "η = 10, learned d = 20"),
            )
        ),
    ),
    "fm": (
        *("the paper's", "σ = 0.1", "σ = 0.5", "anchor", "learned d = 20"),
        *("learned d = 20, no anchor", "no weight decay"),
        *("anchor, no weight decay", "anchor, σ = 0.5"),
    ),
    "dt": (
        *("the paper's", "cross-entropy", "cross-entropy, uniform", "uniform", "η = 1"),
        *(
            f"{kind}, {order}, readout from {start}"
            for kind in ("d = 20", "prototypes")
            for order in ("sequential", "parallel")
            for start in ("nearest", "random")
        ),
        "prototypes, sequential, readout from random, γ shifted",
    ),
}


def fields_of(variant: str) -> Fields:
    """Return the fields that a variant changes."""
    return {k: v for part in variant.split(", ") for k, v in PARTS[part].items()}


def table(lines: list[Line]) -> str:
    """Return accuracy in % on the validation part, a row for each variant, the best in bold."""
    distances = any("least_distance" in line for line in lines)
    rows = []
    for line in lines:
        values = [line["modes"][mode]["accuracy"] for mode in MODES]
        cells = [f"**{v:.2f}**" if v == max(values) else f"{v:.2f}" for v in values]
        if distances:
            cells.append(f"{line['least_distance']:.3f}" if "least_distance" in line else "")
        rows.append([line["variant"], *cells])
    return markdown(["variant", *MODES.values(), *["least distance"] * distances], rows)


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    names = [name for variants in VARIANTS.values() for name in variants]
    study = Study(__doc__, "ablation.jsonl", variants=names)
    study.parser.add_argument("dataset", choices=("digits", "mnist", "cifar10", "cifar100"))
    study.parser.add_argument("method", choices=tuple(VARIANTS))
    study.parser.add_argument("--epochs", type=int, default=2)
    study.parser.add_argument("--steps", type=int, default=100, help="T of inference of ct and fm")
    study.parser.add_argument("--seed", type=int, default=0)
    options = study.parse()
    common: dict[str, Any] = {
        "train.epochs": options.epochs,
        "train.seed": options.seed,
        "evaluation.runs": 1,
    }
    if options.method != "dt":
        common["method.steps"] = options.steps
    key = {"recipe": f"{options.dataset}-{options.method}", "common": common}
    variants = VARIANTS[options.method]

    def measure(key: Line) -> Iterator[Line]:
        changes = fields_of(key["variant"])
        scored = train(replace(RECIPES[key["recipe"]], common | changes), options.data_dir)
        method = scored.model.method
        yield {
            "changes": changes,
            **{k: scored.results[k] for k in ("modes", "evaluations", "calibration_error")},
            "facts": {k: v for k, v in method.facts().items() if not isinstance(v, list)},
            "least_distance": separation(method.embedding.weight)[1],
            "train_seconds": round(scored.seconds, 1),
            "validation_examples": len(scored.validation),
        }

    study.measure((key | {"variant": v} for v in variants if v in options.only), measure)
    print(table(study.lines(**key)))


if __name__ == "__main__":
    main()
