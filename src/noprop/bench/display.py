"""Medians with their ranges, as text and as bars, and the comparison with the plain loop."""

from typing import Any

from noprop.report.tables import table

__all__ = ["INK", "compared_figure", "compared_table", "error_bars", "shown"]

INK = {"ours": "tab:blue", "plain": "tab:gray"}


def shown(value: dict[str, float], digits: int = 0) -> str:
    """Return a median and its range."""
    low, high = value["least"], value["greatest"]
    return f"{value['median']:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def error_bars(values: list[dict[str, float]]) -> list[list[float]]:
    """Return the distances from the medians down to the least and up to the greatest."""
    down = [v["median"] - v["least"] for v in values]
    return [down, [v["greatest"] - v["median"] for v in values]]


def compared_table(found: dict[str, Any]) -> str:
    """Return a row for each method: images per second of both, their ratio, share of the bound."""
    rows = []
    for method, row in found.items():
        speed = row["images_per_second"]
        cells = [
            shown(speed["ours"]),
            shown(speed["plain"], 1 if speed["plain"]["median"] < 100 else 0),
            shown(row["ours_over_plain"], 1),
            f"{100 * row['share_of_bound']:.0f} %",
        ]
        rows.append([method, *cells])
    head = ["method", "ours, images/s", "plain, images/s", "times as fast", "of the bound"]
    return table(head, rows)


def compared_figure(figure: Any, found: dict[str, Any], what: str) -> None:
    """Draw a bar for each method: how many times as fast as the plain loop ours is."""
    axes = figure.subplots()
    values = [row["ours_over_plain"] for row in found.values()]
    heights = [v["median"] for v in values]
    axes.bar(list(found), heights, yerr=error_bars(values), capsize=4, color=INK["ours"])
    for i, value in enumerate(values):
        text = f"{value['median']:.{1 if value['median'] < 20 else 0}f}"
        axes.annotate(text, (i, value["greatest"]), xytext=(0, 3), textcoords="offset points",
                      ha="center")  # fmt: skip
    axes.axhline(1, color=INK["plain"], linewidth=1)
    if max(heights) > 20 * min(heights):
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_title(f"{what}: times as fast as the plain loop")
