"""The suites of ``noprop bench``, one after the other, and what they find as text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.bench.accuracy import EPOCHS, measure_accuracy
from noprop.bench.inference import measure_chains, measure_inference
from noprop.bench.memory import BLOCKS, MODES, measure_memory
from noprop.bench.rates import measure_rates
from noprop.bench.settings import Settings
from noprop.bench.training import (
    measure_scaling,
    measure_training,
    worker_counts,
)
from noprop.build import load_data
from noprop.errors import ConfigError
from noprop.machine import describe_machine
from noprop.report.tables import duration, table

__all__ = ["DEFAULT_SUITES", "SUITES", "Target", "bench_text", "run_suites", "step_count"]

SUITES = ("training", "prediction", "scaling", "memory", "accuracy")
DEFAULT_SUITES = ("training", "prediction", "scaling", "memory")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Of the suite ``accuracy``: how accurate, percent, and where the data may lie."""

    accuracy: float = 99.0
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.accuracy <= 100:
            raise ConfigError(f"--target must lie in 0..100, got {self.accuracy:g}")


def step_count(settings: Settings, suites: tuple[str, ...]) -> int:
    """How often ``progress`` will be called, the suite ``accuracy`` at its longest.

    Raises:
        ConfigError: If there is no such suite.
    """
    rounds, methods = 1 + settings.rounds, len(settings.methods)
    steps = {
        "training": 2 * rounds * methods,
        "prediction": 2 * rounds * (methods + ("dt" in settings.methods)),
        "scaling": rounds * len(worker_counts(settings)),
        "memory": 1 + len(MODES) * len(BLOCKS),
        "accuracy": 2 * len(EPOCHS) * methods,
    }
    for suite in suites:
        if suite not in steps:
            raise ConfigError(f"SUITE: {suite!r} is none of {', '.join(SUITES)}")
    return 1 + sum(steps[suite] for suite in suites)


def run_suites(
    settings: Settings,
    suites: tuple[str, ...],
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    target: Target | None = None,
) -> dict[str, Any]:
    """Run suites one after the other.

    Args:
        settings: of all of them.
        suites: names of :data:`SUITES`.
        progress: called with what was just done.
        keep: called with everything found so far after each step.
        target: of the suite ``accuracy``.
    """
    target = target or Target()
    if "accuracy" in suites:  # what is missing is missed before anything is measured
        for method in settings.methods:
            load_data(settings.config(method), target.data_dir)
    rates = measure_rates(settings.workers)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": settings.as_dict(),
        "rates": rates,
    }

    def step(text: str) -> None:
        progress(text)
        keep(results)

    step("the machine's rates")
    for suite in suites:
        found = results[suite] = {}
        if suite == "training":
            measure_training(settings, rates, found, step)
        elif suite == "prediction":
            measure_inference(settings, rates, found, step)
            if "dt" in settings.methods:
                results["chains"] = {}
                measure_chains(settings, results["chains"], step)
        elif suite == "scaling":
            measure_scaling(settings, found, step)
        elif suite == "memory":
            measure_memory(settings, found, step)
        else:
            measure_accuracy(settings, target.accuracy, target.data_dir, found, step)
        keep(results)
    return results


def bench_text(results: dict[str, Any]) -> str:
    """Everything found, as tables."""
    parts = [_machine_text(results)]
    for name, text in (
        ("training", _speed_text),
        ("prediction", _speed_text),
        ("chains", _chains_text),
        ("scaling", _scaling_text),
        ("memory", _memory_text),
        ("accuracy", _accuracy_text),
    ):
        if name in results:
            parts.append(text(name, results))
    return "\n\n".join(parts)


def _machine_text(results: dict[str, Any]) -> str:
    m, rates, workers = results["machine"], results["rates"], results["settings"]["workers"]
    products = ", ".join(f"{k} {v / 1e9:,.0f}" for k, v in rates.items() if k != "copy")
    return (
        f"{m['processor']}, {m['cores']} cores, torch {m['torch']}, commit {m['commit']}\n"
        f"{workers} worker{'s' * (workers > 1)} of one thread together: "
        f"10⁹ operations/s of products {products}; copies {rates['copy'] / 1e9:,.0f} GB/s"
    )


def _spread(value: dict[str, float], digits: int = 0) -> str:
    """A median and its range."""
    low, high = value["least"], value["greatest"]
    return f"{value['median']:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def _speed_text(name: str, results: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    sides = ""
    for method, row in results[name].items():
        if name == "training":
            threads = row["plain_threads"]
            plain = f"plain float32 on {threads} thread{'s' * (threads > 1)}"
            sides = f"\nours in {row['precision']} on all workers, {plain}"
        speed = row["images_per_second"]
        digits = 1 if speed["plain"]["median"] < 100 else 0
        rows.append(
            [
                method,
                _spread(speed["ours"]),
                _spread(speed["plain"], digits),
                _spread(row["ours_over_plain"], 1),
                f"{100 * row['share_of_bound']:.0f} %",
            ]
        )
    what = {
        "training": "training: one mini-batch, for every block where there are several",
        "prediction": "prediction: the mean chain; features as in training, chains in float32",
    }[name]
    head = ["method", "ours, images/s", "plain, images/s", "times as fast", "of the bound"]
    return f"{what}{sides}\n{table(head, rows)}"


def _chains_text(name: str, results: dict[str, Any]) -> str:
    found = results[name]
    cost = _spread(found["cost_over_one"], 2)
    return f"dt, {found['chains']} chains with noise cost {cost} times one"


def _scaling_text(name: str, results: dict[str, Any]) -> str:
    rows = [
        [count, _spread(row["images_per_second"]), _spread(row["over_one"], 2)]
        for count, row in results[name]["workers"].items()
    ]
    return "dt over workers\n" + table(["workers", "images/s", "times one"], rows)


def _memory_text(name: str, results: dict[str, Any]) -> str:
    found = results[name]
    modes = list(found["above_imports_mb"])
    blocks = list(found["above_imports_mb"][modes[0]])
    rows = [
        [mode, *(f"{found['above_imports_mb'][mode][n]:,.0f}" for n in blocks)] for mode in modes
    ]
    head = ["peak memory above the imports', MB", *(f"T = {n}" for n in blocks)]
    return table(head, rows)


def _accuracy_text(name: str, results: dict[str, Any]) -> str:
    rows = []
    speed = {
        m: r["images_per_second"]["plain"]["median"] for m, r in results.get("training", {}).items()
    }
    for method, runs in results[name]["methods"].items():
        for run in runs:
            plain = run["images_seen"] / speed[method] if method in speed else None
            reached = run["validation_accuracy"] >= results[name]["target"]
            rows.append(
                [
                    method,
                    str(run["epochs"]),
                    duration(run["seconds"]),
                    duration(plain) if plain else "-",
                    f"{run['validation_accuracy']:.2f}" + " *" * reached,
                    f"{run['test_accuracy']:.2f}",
                ]
            )
    head = ["method", "epochs", "training", "plain, by its speed", "validation %", "test %"]
    what = f"time to {results[name]['target']:g} % of the validation part (*)"
    return f"{what}\n{table(head, rows)}"
