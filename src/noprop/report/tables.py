"""Results as text for a terminal: evaluations, grids, descriptions of a run, tables."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from noprop.config import METHODS
from noprop.terminal import printable

__all__ = [
    "FACT_NAMES",
    "accuracy_text",
    "answer_rows",
    "description_text",
    "duration",
    "evaluation_text",
    "grid_text",
    "is_stack",
    "mean_text",
    "mode_name",
    "table",
]

# Names of the ways to predict: the field's, with those of the paper or of the results' JSON.
MODE_NAMES = {
    "single": "one chain (the paper's protocol)",
    "samples": "{samples} chains averaged",
    "path": "ensemble over steps, uniform weights",
    "path-fitted": "ensemble over steps, fitted weights",
    "mean": "deterministic sampler (mean chain)",
    "mean-path-fitted": "deterministic sampler, ensemble over steps",
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
    """Return a mean with its standard error, where it has one: ``97.31 ± 0.02``, or ``–``.

    A small error is never rounded to a certainty: ``97.31 ± <0.01``.
    """
    if mean is None:
        return "–"
    text = f"{mean:.{digits}f}"
    if error is None or math.isnan(error) or error == 0:  # without spread it tells nothing
        return text
    least = 10**-digits
    return f"{text} ± {error:.{digits}f}" if error >= least / 2 else f"{text} ± <{least:.{digits}f}"


def _mean_of(values: Mapping[str, Any], name: str, digits: int = 2) -> str:
    return mean_text(values[name], values[f"{name}_se"], digits)


def duration(seconds: float) -> str:
    """Return a time such as ``<1 s``, ``40 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if 0 < seconds < 0.5:  # never rounded to no time
        return "<1 s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def mode_name(mode: str, results: Mapping[str, Any]) -> str:
    """Return the name of a way to predict, for an evaluation."""
    names = MODE_NAMES
    if is_stack(results):
        last = (results.get("answers") or ["the last answer"])[-1]
        names = {"single": last, "path-fitted": "ensemble of all answers, fitted weights"}
    return str(names.get(mode, mode)).replace("{samples}", str(results.get("samples", "?")))


def is_stack(results: Mapping[str, Any]) -> bool:
    """Return whether an evaluation is that of a stack, which answers without chains or noise."""
    method = METHODS.get(str(results.get("method")))
    return method is not None and method.stack


def evaluation_text(results: Mapping[str, Any]) -> str:
    """Return an evaluation as text, without the parts that its method does not have."""
    rows = []
    for mode, score in results["modes"].items():
        name = mode_name(mode, results)
        name += " *" if mode == results["default"] else ""
        row = [name, _mean_of(score, "accuracy"), _mean_of(score, "log_loss", 4)]
        rows.append([*row, _interval_text(score.get("accuracy_interval"))])
    heads = ["prediction (* is the default)", "accuracy %", "log-loss nats"]
    lines = [
        _extent_text(results),
        "",
        table([*heads, "95 % interval of accuracy"], rows),
        "",
        *(_answers_text if is_stack(results) else _chain_text)(results),
    ]
    if (error := results.get("calibration_error")) is not None:
        lines.append(f"expected calibration error (ECE) of the default: {100 * error:.2f} %")
    if alone := results.get("last_block_alone"):
        lines.append(f"ablation, last step alone on noise: {_mean_of(alone, 'accuracy')} %")
    if elbo := results.get("elbo"):
        terms = " + ".join(f"{k} {v:.4g}" for k, v in elbo.items() if k != "total")
        lines.append(f"bound on -log p(y|x) (negative ELBO), nats: {elbo['total']:.4g} = {terms}")
    if training := results.get("training"):
        lines.append(_cost_text(training))
    return "\n".join(lines)


def _chain_text(results: Mapping[str, Any]) -> list[str]:
    """Return the accuracies along a chain, and what the chain costs."""
    steps, times = (" ".join(f"{v:.3g}" for v in results[k]) for k in ("steps", "times"))
    return [
        f"accuracy % of one chain by the nearest embedding: {steps}",
        f"  at t = {times}",
        f"network function evaluations (NFE) of a chain: {results['evaluations']:.4g}",
    ]


def _answers_text(results: Mapping[str, Any]) -> list[str]:
    """Return the accuracy of each answer of a stack, if there are several, and what all cost."""
    passes = f"forward passes of a prediction: {results['evaluations']:.4g}"
    rows = [[name, f"{accuracy:.2f}"] for name, accuracy in answer_rows(results)]
    return [*((table(["answer", "accuracy %"], rows), "") if rows else ()), passes]


def answer_rows(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return name and accuracy of each answer of a stack that has several; none of others."""
    accuracies = results["steps"][1:]  # at t = 0 there is no answer
    if not is_stack(results) or len(accuracies) < 2:
        return []
    names = results.get("answers") or [f"answer {n}" for n in range(1, len(accuracies) + 1)]
    return list(zip(names, accuracies, strict=True))


def _interval_text(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _extent_text(results: Mapping[str, Any]) -> str:
    """Return what was evaluated, and how much more the full protocol has."""
    full, runs = results.get("protocol", {}), results["runs"]
    of = f" of {full['examples']:,}" if "examples" in full else ""
    text = f"{results['examples']:,}{of} {results['part']} examples, "
    text += f"mean ± standard error of {runs} runs" if runs > 1 else "1 inference run"
    text += f" of {full['runs']}" if "runs" in full else ""
    missing = [m for m in full.get("modes", ()) if m not in results["modes"]]
    names = [mode_name(mode, results) for mode in missing]
    return f"{text}\nleft out: {'; '.join(names)}" if names else text


def _cost_text(training: Mapping[str, Any]) -> str:
    """Return the time and the memory of a run."""
    workers, wall = training.get("workers") or 1, training.get("wall_seconds")
    took = duration(training["seconds"] if wall is None else wall)
    if wall is not None and workers > 1:
        took += f" on {workers} workers ({duration(training['seconds'])} of worker time)"
    if (seconds := training.get("evaluation_seconds")) is not None:
        took += f", evaluation {duration(seconds)}"
    each = " of the largest worker" if workers > 1 else ""
    return (
        f"training took {took}; peak memory{each} {training['peak_memory_mb']:.0f} MB "
        f"({printable(training['memory_counter'])})"
    )


def accuracy_text(results: Mapping[str, Any]) -> str:
    """Return the accuracy of an evaluation in one line."""
    modes, one = results["modes"], ""
    if "single" in modes and not is_stack(results):
        one = f", one chain {modes['single']['accuracy']:.2f} %"
    return f"accuracy {modes[results['default']]['accuracy']:.2f} %{one}"


def grid_text(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results of each row, as :func:`noprop.grid.summary` gives them."""
    head = ["run", "seeds", "accuracy %", "difference", "one chain %", "log-loss nats"]
    head += ["training", "parameters", "memory MB"]
    rows = []
    for name, row in summary.items():
        seconds, parameters, memory = (
            row[key] for key in ("seconds", "parameters", "peak_memory_mb")
        )
        cells = [name, str(row["seeds"]), _mean_of(row, "accuracy")]
        cells += [_difference_text(row["difference"]), _mean_of(row, "single")]
        cells += [_mean_of(row, "log_loss", 4), "–" if seconds is None else duration(seconds)]
        cells += ["–" if parameters is None else f"{parameters:,}"]
        rows.append([*cells, "–" if memory is None else f"{memory:.0f}"])
    return f"{table(head, rows)}\n\n{_grid_caption(summary)}"


def _difference_text(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    text, interval = f"{difference['mean']:+.2f}", difference["interval"]
    return text if interval is None else f"{text} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def _grid_caption(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the numbers of a grid are."""
    lines = ["accuracy and log-loss of the default prediction; ± is the standard error over seeds"]
    found = [row["difference"] for row in summary.values() if row["difference"]]
    if found:
        counts = sorted({d["examples"] for d in found})
        examples = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        several = any(d["seeds"] > 1 for d in found)
        pairs = "paired over them, and over seeds" if several else "paired over them, one seed"
        lines.append(
            f"difference: accuracy minus that of the first row, on the same {examples} test "
            f"examples, with a 95 % normal interval {pairs}; of the first inference "
            "run alone, so it can differ from that of the accuracies"
        )
    lines.append("training: time of all workers, mean over seeds; memory: the largest process")
    return "\n".join(lines)


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
        *_settings_text(about.get("settings", {})),
        "",
        table(["unit", "parameters", "local depth"], units),
        f"shared (W_Embed): {shared:,}" if shared else f"shared: {none}",
        f"parameters in all: {about['parameters']:,}",
        "",
        "local depth: layers with weights that one gradient crosses",
        f"memory of training {what}: about {about['unit_memory_mb']:.0f} MB "
        f"(weights, gradients, optimizer, activations of a batch)",
    ]
    if about["examples"]:
        lines.append(
            f"updates of a unit: {about['updates']:,} ({about['examples']:,} examples); all units: "
            f"about {duration(about['training_seconds'])} of one core of this machine as it is now"
        )
    if about["schedule"]:
        keys = list(about["schedule"][0])
        levels = [[_level_text(key, level[key]) for key in keys] for level in about["schedule"]]
        lines += ["", table([LEVEL_NAMES.get(key) or key for key in keys], levels)]
        if "a" in keys:
            lines.append("a, b, c of the step to t: z_t = a û + b z_(t-1) + √c ε (Eq. 3)")
    return "\n".join(lines)


def _settings_text(settings: Mapping[str, Any]) -> list[str]:
    """Return lines with the settings that differ from the defaults of the method."""
    if not settings:
        return []
    switches = {True: "on", False: "off"}
    words = [
        f"{name}={printable(switches[v] if isinstance(v, bool) else v)}"
        for name, v in settings.items()
    ]
    lines = textwrap.wrap(", ".join(words), 96, break_long_words=False, break_on_hyphens=False)
    return ["settings that are not the method's defaults:", *(f"  {line}" for line in lines)]


def _level_text(key: str, value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if key in "abc" else f"{value:.4g}"
