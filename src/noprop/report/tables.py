"""Results as text for a terminal: evaluations, grids, descriptions of a run, tables."""

import math
from collections.abc import Mapping
from typing import Any

from noprop.terminal import printable

__all__ = [
    "FACT_NAMES",
    "accuracy_text",
    "description_text",
    "duration",
    "evaluation_text",
    "grid_text",
    "mean_text",
    "mode_name",
    "table",
]

# Names of the ways to predict.
MODE_NAMES = {
    "single": "one chain (the paper's protocol)",
    "samples": "{samples} chains averaged",
    "path": "path average, uniform",
    "path-fitted": "path average, fitted weights",
    "mean": "mean chain (no noise)",
    "mean-path-fitted": "mean chain, path average, fitted weights",
}
# Names of the ways to predict without noise.
NOISELESS_NAMES = {
    "single": "the last answer",
    "path-fitted": "mean of all answers, fitted weights",
}
# Names of the numbers that a method reports after an epoch.
FACT_NAMES = {
    "alpha_bar_0": "ᾱ(0)",
    "alpha_bar_1": "ᾱ(1)",
    "max_snr_slope": "max SNR′(t)",
    "gamma": "γ(t)",
    "mixing": "α_t",
}
# Heads of the columns of a schedule.
LEVEL_NAMES = {"alpha_bar": "ᾱ", "snr": "SNR", "snr_slope": "SNR′", "weight": "loss weight"}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table whose first column is aligned left, and the others right."""
    head, rows = list(map(printable, head)), [list(map(printable, row)) for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])


def mean_text(mean: float | None, error: float | None, digits: int = 2) -> str:
    """Return a mean with its standard error, where it has one: ``97.31 ± 0.02``, or ``–``."""
    if mean is None:
        return "–"
    known = error is not None and not math.isnan(error)
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")


def _mean_of(values: Mapping[str, Any], name: str, digits: int = 2) -> str:
    return mean_text(values[name], values[f"{name}_se"], digits)


def duration(seconds: float) -> str:
    """Return a time such as ``40 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def mode_name(mode: str, results: Mapping[str, Any]) -> str:
    """Return the name of a way to predict, for an evaluation."""
    names = MODE_NAMES if "samples" in results["modes"] else NOISELESS_NAMES
    return str(names.get(mode, mode)).replace("{samples}", str(results.get("samples", "?")))


def evaluation_text(results: Mapping[str, Any]) -> str:
    """Return an evaluation as text, without the parts that its method does not have."""
    rows = []
    for mode, score in results["modes"].items():
        name = mode_name(mode, results)
        name += " *" if mode == results["default"] else ""
        rows.append([name, _mean_of(score, "accuracy"), _mean_of(score, "log_loss", 4)])
    steps, times = (" ".join(f"{v:.3g}" for v in results[k]) for k in ("steps", "times"))
    has_chains = "samples" in results["modes"]
    chain = "one chain by the nearest embedding" if has_chains else "each answer, 0 for none"
    lines = [
        f"{results['examples']} {results['part']} examples, "
        f"mean ± standard error of {results['runs']} runs",
        "",
        table(["prediction (* is the default)", "accuracy %", "log-loss nats"], rows),
        "",
        f"accuracy % of {chain}: {steps}",
        f"  at t = {times}",
        f"network evaluations in a chain: {results['evaluations']:.4g}",
        f"calibration error of the default: {100 * results['calibration_error']:.2f} %",
    ]
    if alone := results.get("last_block_alone"):
        lines.append(f"control, last step alone on noise: {_mean_of(alone, 'accuracy')} %")
    if elbo := results.get("elbo"):
        terms = " + ".join(f"{k} {v:.4g}" for k, v in elbo.items() if k != "total")
        lines.append(f"bound on -log p(y|x), nats: {elbo['total']:.4g} = {terms}")
    if training := results.get("training"):
        lines.append(
            f"training took {duration(training['seconds'])}; peak memory "
            f"{training['peak_memory_mb']:.0f} MB ({printable(training['memory_counter'])})"
        )
    return "\n".join(lines)


def accuracy_text(results: Mapping[str, Any]) -> str:
    """Return the accuracy of an evaluation in one line."""
    modes = results["modes"]
    one = f", one chain {modes['single']['accuracy']:.2f} %" if "single" in modes else ""
    return f"accuracy {modes[results['default']]['accuracy']:.2f} %{one}"


def grid_text(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the accuracy of each recipe, as :func:`noprop.grid.summary` gives it."""
    head = ["accuracy %, mean ± standard error", "seeds", "default prediction", "one chain"]
    rows = [
        [recipe, str(row["seeds"]), _mean_of(row, "accuracy"), _mean_of(row, "single")]
        for recipe, row in summary.items()
    ]
    return table(head, rows)


def description_text(about: Mapping[str, Any]) -> str:
    """Return what :func:`noprop.report.describe.describe` found."""
    units = [[u["name"], f"{u['parameters']:,}", str(u["local_depth"])] for u in about["units"]]
    shared = about["shared_parameters"]
    none = "nothing, so units train independently" if len(units) > 1 else "nothing"
    what = "one unit"
    if about["stack"]:
        what = "the units"
        none = "nothing, but units read each other's outputs, so they train together"
    lines = [
        f"{about['recipe']}: {about['method']} on {printable(about['dataset'])}, "
        f"inputs {about['shape']}, {about['classes']} classes",
        "",
        table(["unit", "parameters", "local depth"], units),
        f"shared (W_Embed): {shared:,}" if shared else f"shared: {none}",
        "",
        "local depth: layers with weights that one gradient crosses",
        f"memory of training {what}: about {about['unit_memory_mb']:.0f} MB "
        f"(weights, gradients, optimizer, activations of a batch)",
    ]
    if about["schedule"]:
        keys = list(about["schedule"][0])
        levels = [[_level_text(key, level[key]) for key in keys] for level in about["schedule"]]
        lines += ["", table([LEVEL_NAMES.get(key) or key for key in keys], levels)]
    return "\n".join(lines)


def _level_text(key: str, value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if key in "abc" else f"{value:.4g}"
