"""The class of a suite of ``noprop bench``, and functions that run suites and show results."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.bench import SUITES
from noprop.bench.rates import measure_rates
from noprop.bench.settings import Settings
from noprop.errors import ConfigError
from noprop.machine import describe_machine
from noprop.report.pictures import draw, save_pictures

__all__ = [
    "Progress",
    "Results",
    "Suite",
    "find_suite",
    "step_count",
    "run_suites",
    "bench_text",
    "draw_bench",
]

Progress = Callable[[str], None]
Results = dict[str, Any]  # the content of bench.json


@dataclass(frozen=True)
class Suite:
    """One suite: how it measures, and how its results are shown.

    Attributes:
        steps: Greatest number of calls of ``progress`` in ``measure``.
        measure: Function that adds the measurements to the results under the suite's name. It
            finds the machine's rates under ``rates``, and calls ``progress`` after each step.
        table: The measurements as text, from all results.
        figures: Functions that draw the measurements on a matplotlib figure, by file name.
        check: Function that raises an error for missing data or packages, before measuring.
    """

    steps: Callable[[Settings], int]
    measure: Callable[[Settings, Results, Progress], None]
    table: Callable[[Results], str]
    figures: dict[str, Callable[[Any, Results], None]]
    check: Callable[[Settings], None] = lambda settings: None


def find_suite(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        ConfigError: If a suite does not exist.
    """
    if name not in SUITES:
        raise ConfigError(f"SUITE: {name!r} is none of {', '.join(SUITES)}")
    return importlib.import_module(f"noprop.bench.{name}").SUITE


def step_count(settings: Settings, names: Sequence[str]) -> int:
    """Return the greatest number of calls of ``progress`` in :func:`run_suites`.

    Raises:
        ConfigError: If a suite does not exist.
    """
    return 1 + sum(find_suite(name).steps(settings) for name in names)


def run_suites(
    settings: Settings,
    names: Sequence[str],
    progress: Progress,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Run suites one after the other.

    Args:
        settings: Settings of all suites.
        names: Names of suites, from ``SUITES``.
        progress: Function that is called with a description of each finished step.
        keep: Function that is called with all results so far, after each step and each suite.
    """
    suites = [find_suite(name) for name in names]
    for suite in suites:
        suite.check(settings)
    results: Results = {
        "machine": describe_machine(),
        "settings": settings.as_dict(),
        "rates": measure_rates(settings.workers),
    }

    def step(text: str) -> None:
        progress(text)
        keep(results)

    step("the machine's rates")
    for suite in suites:
        suite.measure(settings, results, step)
        keep(results)
    return results


def bench_text(results: Results) -> str:
    """Return all results as tables."""
    tables = [find_suite(name).table(results) for name in SUITES if name in results]
    return "\n\n".join([_machine_text(results), *tables])


def _machine_text(results: Results) -> str:
    m, rates, workers = results["machine"], results["rates"], results["settings"]["workers"]
    products = ", ".join(f"{k} {v / 1e9:,.0f}" for k, v in rates.items() if k != "copy")
    return (
        f"{m['processor']}, {m['cores']} cores, torch {m['torch']}, commit {m['commit']}\n"
        f"{workers} worker{'s' * (workers > 1)} of one thread together: "
        f"10⁹ operations/s of products {products}; copies {rates['copy'] / 1e9:,.0f} GB/s"
    )


def draw_bench(results: Results, folder: Path) -> list[Path]:
    """Draw all results as PNG files, and return their paths.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    pictures = [
        draw(file, lambda figure, drawing=drawing: drawing(figure, results))
        for name in SUITES
        if name in results
        for file, drawing in find_suite(name).figures.items()
    ]
    return save_pictures(pictures, folder)
