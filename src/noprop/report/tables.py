"""What the commands print, as text: evaluations, descriptions of a run, predictions, data sets."""

from typing import Any

__all__ = ["description_text", "evaluation_text", "table"]

MODE_NAMES = {
    "single": "one chain (the paper's protocol)",
    "samples": "{samples} chains averaged",
    "path": "path average, uniform",
    "path-fitted": "path average, fitted weights",
    "mean": "mean chain (no noise)",
    "mean-path-fitted": "mean chain, path average, fitted",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns padded to their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])


def evaluation_text(results: dict[str, Any]) -> str:
    """An evaluation as a person reads it."""
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
    alone, elbo = results["last_block_alone"], results["elbo"]
    steps = " ".join(f"{value:.1f}" for value in results["steps"])
    return "\n".join(
        [
            f"{results['examples']} {results['part']} examples, "
            f"mean ± standard error of {results['runs']} runs",
            "",
            table(["prediction (* is the default)", "accuracy %", "log-loss nats"], rows),
            "",
            f"accuracy % after each step of one chain, t = 0 to T: {steps}",
            f"control, last block alone on noise: {_pm(alone, 'accuracy', 2)} %",
            f"calibration error of the default: {100 * results['calibration_error']:.2f} %",
            f"bound on -log p(y|x), nats: {elbo['total']:.4g} = classification "
            f"{elbo['classification']:.4g} + prior {elbo['prior']:.4g} + denoising "
            f"{elbo['denoising']:.4g}",
        ]
    )


def _pm(values: dict[str, float], name: str, digits: int) -> str:
    return f"{values[name]:.{digits}f} ± {values[name + '_se']:.{digits}f}"


def description_text(about: dict[str, Any]) -> str:
    """A run before it is trained: its units, parameters, memory and schedule."""
    units = [[u["name"], f"{u['parameters']:,}"] for u in about["units"]]
    shared = about["shared_parameters"]
    levels = [
        [
            str(level["t"]),
            *(f"{level[k]:.4g}" if level[k] is not None else "" for k in ("alpha_bar", "snr")),
            *(f"{level[k]:.4f}" if level[k] is not None else "" for k in ("a", "b", "c")),
            f"{level['weight']:.4g}" if level["weight"] is not None else "",
        ]
        for level in about["schedule"]
    ]
    return "\n".join(
        [
            f"{about['recipe']}: {about['dataset']}, inputs {about['shape']}, "
            f"{about['classes']} classes",
            "",
            table(["unit", "parameters"], units),
            f"shared (W_Embed): {shared:,}" if shared else "shared: nothing, so units train apart",
            "",
            f"memory of training one unit: about {about['unit_memory_mb']:.0f} MB "
            f"(weights, gradients, optimizer, activations of a batch)",
            "",
            table(["t", "ᾱ", "SNR", "a", "b", "c", "loss weight"], levels),
        ]
    )
