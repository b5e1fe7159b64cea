"""The figures of ``noprop bench``: times as fast, roofline, workers, memory, time to accuracy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from noprop.report.pictures import Picture, draw, save_pictures

__all__ = ["draw_bench"]

INK = {"ours": "tab:blue", "plain": "tab:gray"}


def draw_bench(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what was measured, as PNG files.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    drawings: dict[str, Callable[[Any], None]] = {}
    for suite, what in (("training", "training"), ("prediction", "prediction")):
        if suite in results:
            drawings[f"{suite}-speed"] = lambda figure, s=suite, w=what: _bars(
                figure, results[s], f"{w}: times as fast as the plain loop"
            )
    if "training" in results:
        drawings["roofline"] = lambda figure: _roofline(figure, results)
    if "scaling" in results:
        drawings["scaling"] = lambda figure: _scaling(figure, results["scaling"]["workers"])
    if "memory" in results:
        drawings["memory"] = lambda figure: _memory(figure, results["memory"])
    if "accuracy" in results:
        drawings["accuracy"] = lambda figure: _accuracy(figure, results["accuracy"])
    pictures: list[Picture] = [draw(name, drawing) for name, drawing in drawings.items()]
    return save_pictures(pictures, folder)


def _errors(values: list[dict[str, float]]) -> list[list[float]]:
    """Distances from the medians down to the least and up to the greatest."""
    down = [v["median"] - v["least"] for v in values]
    return [down, [v["greatest"] - v["median"] for v in values]]


def _bars(figure: Any, rows: dict[str, Any], title: str) -> None:
    axes = figure.subplots()
    values = [row["ours_over_plain"] for row in rows.values()]
    heights = [v["median"] for v in values]
    axes.bar(list(rows), heights, yerr=_errors(values), capsize=4, color=INK["ours"])
    for i, value in enumerate(values):
        text = f"{value['median']:.{1 if value['median'] < 20 else 0}f}"
        axes.annotate(text, (i, value["greatest"]), xytext=(0, 3), textcoords="offset points",
                      ha="center")  # fmt: skip
    axes.axhline(1, color=INK["plain"], linewidth=1)
    if max(heights) > 20 * min(heights):
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_title(title)


def _roofline(figure: Any, results: dict[str, Any]) -> None:
    """Operations a second against operations a byte, under the machine's two bounds."""
    axes, rates = figure.subplots(), results["rates"]
    copy = rates["copy"]
    points = {
        method: (row["operations"] / row["bytes"], row["operations"] / row["seconds"])
        for method, row in results["training"].items()
    }
    least = min(x for x, _ in points.values()) / 4
    greatest = max(max(x for x, _ in points.values()), max(rates.values()) / copy) * 4
    for kind, rate in rates.items():
        if kind != "copy":
            knee = rate / copy
            axes.plot([least, knee, greatest], [least * copy, rate, rate], label=f"bound, {kind}")
    for method, (x, y) in points.items():
        axes.plot(x, y, "o", color="black")
        axes.annotate(method, (x, y), xytext=(6, -4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("operations a second")
    axes.set_title("training under the roofline")
    axes.legend()


def _scaling(figure: Any, rows: dict[str, Any]) -> None:
    axes = figure.subplots()
    counts, values = [int(n) for n in rows], [row["over_one"] for row in rows.values()]
    medians = [v["median"] for v in values]
    axes.errorbar(counts, medians, yerr=_errors(values), fmt="o-", capsize=4, label="measured")
    axes.plot(counts, counts, "--", color=INK["plain"], label="as many times as workers")
    axes.set_xticks(counts)
    axes.set_xlabel("workers")
    axes.set_ylabel("times one worker")
    axes.set_title("dt: images a second over workers")
    axes.legend()


def _memory(figure: Any, found: dict[str, Any]) -> None:
    axes = figure.subplots()
    for mode, row in found["above_imports_mb"].items():
        axes.plot([int(n) for n in row], list(row.values()), "o-", label=mode)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("blocks T")
    axes.set_ylabel("MB above the imports")
    axes.set_title("peak memory of training")
    axes.legend()


def _accuracy(figure: Any, found: dict[str, Any]) -> None:
    axes = figure.subplots()
    for method, runs in found["methods"].items():
        seconds = [run["seconds"] for run in runs]
        axes.plot(seconds, [run["validation_accuracy"] for run in runs], "o-", label=method)
    axes.axhline(found["target"], color=INK["plain"], linewidth=1)
    axes.set_xlabel("seconds of training, each point a run of its own")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title(f"time to {found['target']:g} %")
    axes.legend()
