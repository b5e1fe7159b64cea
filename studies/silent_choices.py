"""What we chose where the paper is silent, and its alternatives, on the validation part.

Every variant changes a field or two of a recipe, and is trained from several seeds for a short
while. A seed also draws the split, so that variants of one seed see the same examples, and
differences are taken seed by seed.

    python studies/silent_choices.py mnist --seeds 2
    python studies/silent_choices.py mnist --table    # the results so far, as Markdown
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from noprop.config import replace
from noprop.evaluate import choose_weights, evaluate
from noprop.model import Model
from noprop.recipes import RECIPES
from study import Line, Study, markdown, mean_and_error, train

OURS = "ours"
# A minute or less of one core for each run. CT and FM, which mostly predict by the mean chain, use
# one chain.
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
    """Make batch norm take mean and variance from its batch, as in training."""
    for block in model.method.units:
        for layer in block.module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean = layer.running_var = None


# Other readings of a model that was trained as ours.
READINGS: dict[str, dict[str, Callable[[Model], None]]] = {
    "dt": {"batch norm by the batch at inference": use_batch_statistics}
}


def scores(results: dict[str, Any]) -> Line:
    """Return accuracy and log-loss of one chain, the default prediction and the mean chain."""
    modes = {"single": "single", "default": results["default"], "mean": "mean"}
    return {
        kind: {k: round(results["modes"][mode][kind], 5) for k, mode in modes.items()}
        for kind in ("accuracy", "log_loss")
    }


def table(lines: list[Line], variants: Iterable[str]) -> str:
    """Return a row for each variant: accuracy in %, log-loss in nats, and the gain over ours."""
    ours = {line["seed"]: line for line in lines if line["variant"] == OURS}
    rows = []
    for variant in variants:
        mine = [line for line in lines if line["variant"] == variant]
        if not mine:
            continue
        modes = ("single", "default", "mean")
        cells = [mean_and_error([line["accuracy"][mode] for line in mine]) for mode in modes]
        cells.append(mean_and_error([line["log_loss"]["default"] for line in mine], 3))
        both = [line for line in mine if line["seed"] in ours and variant != OURS]
        for mode in ("single", "default"):
            gain = [e["accuracy"][mode] - ours[e["seed"]]["accuracy"][mode] for e in both]
            cells.append(mean_and_error(gain, sign="+") if gain else "")
        rows.append([variant, str(len(mine)), *cells])
    head = ["variant", "n", "one chain", "default", "mean chain", "log-loss"]
    return markdown([*head, "one chain - ours", "default - ours"], rows)


def main() -> None:
    """Measure what is not measured yet, seed after seed, and print the tables."""
    names = [name for variants in VARIANTS.values() for name in variants]
    study = Study(__doc__, "silent-choices.jsonl", seeds=2, variants=names)
    study.parser.add_argument("dataset", choices=tuple(DATA))
    study.parser.add_argument(
        "--methods", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS)
    )
    options = study.parse()
    keys = {
        method: {
            "recipe": f"{options.dataset}-{method}",
            "common": COMMON | DATA[options.dataset] | LENGTH[options.dataset][method],
        }
        for method in options.methods
    }

    def measure(key: Line) -> Iterator[Line]:
        method = key["recipe"].removeprefix(f"{options.dataset}-")
        changes = VARIANTS[method][key["variant"]]
        fields = key["common"] | changes | {"train.seed": key["seed"]}
        scored = train(replace(RECIPES[key["recipe"]], fields), options.data_dir)
        about = {"seconds": round(scored.seconds, 1), "validation_examples": len(scored.validation)}
        yield {"changes": changes} | scores(scored.results) | about
        for name, change in READINGS.get(method, {}).items() if key["variant"] == OURS else ():
            change(scored.model)
            choose_weights(scored.model, scored.validation)
            results = evaluate(scored.model, scored.validation)
            yield {"variant": name, "changes": changes} | scores(results) | about

    wanted = (
        key | {"seed": seed, "variant": variant}
        for seed in range(options.seeds)
        for method, key in keys.items()
        for variant in VARIANTS[method]
        if variant in options.only
    )
    study.measure(wanted, measure)
    for method, key in keys.items():
        ours, *others = VARIANTS[method]
        shown = [ours, *READINGS.get(method, {}), *others]
        print(f"\n{key['recipe']}\n\n{table(study.lines(**key), shown)}")


if __name__ == "__main__":
    main()
