"""What the commands print, as text: evaluations, descriptions of a run, predictions, data sets."""

from collections.abc import Mapping
from typing import Any

from noprop.terminal import printable

__all__ = [
    "FACTS",
    "accuracy_text",
    "description_text",
    "duration",
    "evaluation_text",
    "grid_text",
    "table",
]

MODE_NAMES = {
    "single": "one chain (the paper's protocol)",
    "samples": "{samples} chains averaged",
    "path": "path average, uniform",
    "path-fitted": "path average, fitted weights",
    "mean": "mean chain (no noise)",
    "mean-path-fitted": "mean chain, path average, fitted",
}


# What a method tells of itself after an epoch, as people write it.
FACTS = {
    "alpha_bar_0": "ᾱ(0)",
    "alpha_bar_1": "ᾱ(1)",
    "max_snr_slope": "max SNR′(t)",
    "gamma": "γ(t)",
    "mixing": "α_t",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns padded to their widest cell; the first to the left, the others to the right."""
    head, rows = list(map(printable, head)), [list(map(printable, row)) for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])


def evaluation_text(results: dict[str, Any]) -> str:
    """An evaluation as a person reads it; what a method does not have is left out."""
    rows = []
    for mode, s in results["modes"].items():
        name = MODE_NAMES[mode].format(samples=results["samples"])
        name += " *" if mode == results["default"] else ""
        rows.append(
            [
                name,
                _pm(s, "accuracy", 2),
                _pm(s, "log_loss", 4),
            ]
        )
    steps, times = (" ".join(f"{v:.3g}" for v in results[k]) for k in ("steps", "times"))
    lines = [
        f"{results['examples']} {results['part']} examples, "
        f"mean ± standard error of {results['runs']} runs",
        "",
        table(["prediction (* is the default)", "accuracy %", "log-loss nats"], rows),
        "",
        f"accuracy % of one chain, by the nearest embedding: {steps}",
        f"  at t = {times}",
        f"network evaluations in a chain: {results['evaluations']:.4g}",
        f"calibration error of the default: {100 * results['calibration_error']:.2f} %",
    ]
    if alone := results.get("last_block_alone"):
        lines.append(f"control, last step alone on noise: {_pm(alone, 'accuracy', 2)} %")
    if elbo := results.get("elbo"):
        terms = " + ".join(f"{k} {v:.4g}" for k, v in elbo.items() if k != "total")
        lines.append(f"bound on -log p(y|x), nats: {elbo['total']:.4g} = {terms}")
    if training := results.get("training"):
        lines.append(
            f"training took {duration(training['seconds'])}; peak memory "
            f"{training['peak_memory_mb']:.0f} MB ({printable(training['memory_counter'])})"
        )
    return "\n".join(lines)


def _pm(values: dict[str, float], name: str, digits: int) -> str:
    return f"{values[name]:.{digits}f} ± {values[name + '_se']:.{digits}f}"


def accuracy_text(results: Mapping[str, Any]) -> str:
    """The accuracy of an evaluation in one line."""
    modes = results["modes"]
    one = f", one chain {modes['single']['accuracy']:.2f} %" if "single" in modes else ""
    return f"accuracy {modes[results['default']]['accuracy']:.2f} %{one}"


def grid_text(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Recipes by accuracy, as :func:`noprop.grid.summary` gives it."""
    head = ["accuracy %, mean ± standard error", "seeds", "our prediction", "one chain"]
    rows = [
        [recipe, str(row["seeds"]), _of_seeds(row, "accuracy"), _of_seeds(row, "single")]
        for recipe, row in summary.items()
    ]
    return table(head, rows)


def _of_seeds(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    error = row[f"{name}_se"]
    return f"{row[name]:.2f}" + ("" if error is None else f" ± {error:.2f}")


def description_text(about: dict[str, Any]) -> str:
    """A run before it is trained: its units, parameters, memory and schedule."""
    units = [[u["name"], f"{u['parameters']:,}"] for u in about["units"]]
    shared = about["shared_parameters"]
    apart = "nothing, so units train apart" if len(units) > 1 else "nothing"
    dataset = printable(about["dataset"])
    lines = [
        f"{about['recipe']}: {about['method']} on {dataset}, inputs {about['shape']}, "
        f"{about['classes']} classes",
        "",
        table(["unit", "parameters"], units),
        f"shared (W_Embed): {shared:,}" if shared else f"shared: {apart}",
        "",
        f"memory of training one unit: about {about['unit_memory_mb']:.0f} MB "
        f"(weights, gradients, optimizer, activations of a batch)",
    ]
    if about["schedule"]:
        keys = list(about["schedule"][0])
        levels = [[_cell(k, level[k]) for k in keys] for level in about["schedule"]]
        lines += ["", table([HEADS.get(k) or k for k in keys], levels)]
    return "\n".join(lines)


HEADS = {"alpha_bar": "ᾱ", "snr": "SNR", "snr_slope": "SNR′", "weight": "loss weight"}


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if key in "abc" else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Such as ``40 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
