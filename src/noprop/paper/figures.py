"""Figs. 3, 4, 6 and 7 from results."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from noprop.model import load
from noprop.paper.cells import EXPERIMENTS
from noprop.paper.numbers import DATASETS, METHODS
from noprop.paper.records import Summary
from noprop.paper.tables import scale_text
from noprop.report.pictures import Picture, draw
from noprop.tensor_files import load_tensors

__all__ = ["draw_experiment"]

NAMES = {
    "one-hot": "one-hot",
    "d20": "dim=20",
    "prototype": "prototype",
    "random-image": "random",
    "orthogonal-image": "orthogonal",
    "softmax": "softmax (Eq. 14)",
    "radial": "radial (Eqs. 15, 16)",
}


def draw_experiment(name: str, found: Sequence[Summary], runs: Path) -> list[Picture]:
    """Draw the pictures of an experiment, one for each scale that has results.

    Fig. 4 has one for full results and one for all others, whose legend states the scale.

    Args:
        name: Name of the experiment.
        found: Results of any experiments.
        runs: Folder of the run folders, which Fig. 3 reads.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    cells = {cell.name for cell in EXPERIMENTS[name]}
    mine = [s for s in found if s.cell.name in cells]
    drawings: dict[str, Callable[[Any, list[Summary]], None]] = {
        "fig3": lambda figure, some: _prototypes(figure, some[0], runs),
        "fig4": _accuracy_in_time,
        "fig6": lambda figure, some: _bars(figure, some, "embedding", "readout"),
        "fig7": lambda figure, some: _bars(figure, some, None, "embedding"),
    }
    if name not in drawings:
        return []
    if name == "fig3":
        mine = [s for s in mine if (_folder(s, runs) / "model.json").is_file()]
    if name == "fig4":
        mine = [s for s in mine if any(record["curve"] for record in s.records)]
    groups: dict[str, list[Summary]] = {}
    for s in mine:
        scaled = "scaled" if name == "fig4" else s.scale
        groups.setdefault("full" if s.is_full else scaled, []).append(s)
    compared = {"fig6": "readout", "fig7": "embedding"}.get(name)
    if compared:  # a single bar compares nothing
        groups = {
            group: some
            for group, some in groups.items()
            if len({getattr(s.cell, compared) for s in some}) > 1
        }
    draw_one = drawings[name]
    return [
        draw(f"{name}-{group}", lambda figure, some=some: draw_one(figure, some))
        for group, some in groups.items()
    ]


def _folder(summary: Summary, runs: Path) -> Path:
    return runs / summary.scale / f"{summary.cell.name}-seed-{summary.seeds[0]}"


def _prototypes(figure: Any, summary: Summary, runs: Path) -> None:
    """Draw Fig. 3: the embeddings as images, before and after training."""
    folder = _folder(summary, runs)
    model = load(folder, device="cpu")
    task, normal = model.task, model.task.normalization
    start = load_tensors(folder / "embedding.safetensors")[0]["weight"]
    rows = {"before": start, "after": model.method.embedding.weight.detach()}
    axes = figure.subplots(2, task.num_classes, squeeze=False)
    for row, (name, weight) in zip(axes, rows.items(), strict=True):
        images = weight.unflatten(1, task.shape).double()
        mean, std = (torch.tensor(v).view(-1, 1, 1).double() for v in (normal.mean, normal.std))
        images = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
        for axis, image, label in zip(row, images, task.class_names, strict=True):
            axis.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if row is axes[0]:
                axis.set_title(label, fontsize=8)
        row[0].set_ylabel(name)
    figure.suptitle(
        f"{summary.cell.name}, seed {summary.seeds[0]}: {scale_text(summary)}", fontsize=9
    )


def _accuracy_in_time(figure: Any, some: list[Summary]) -> None:
    """Draw Fig. 4: test accuracy of one chain over seconds of training, a line for each seed."""
    datasets = [d for d in DATASETS if any(s.cell.dataset == d for s in some)]
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    colors: dict[str, str] = {"ct": "tab:blue", "fm": "tab:orange", "adjoint": "tab:green"}
    for axis, dataset in zip(axes, datasets, strict=True):
        for summary in [s for s in some if s.cell.dataset == dataset]:
            label = METHODS[summary.cell.method]
            same = [s for s in some if s.cell == summary.cell]
            label += "" if summary.is_full else f": {scale_text(summary)}"
            label = textwrap.fill(label, 40)
            for i, record in enumerate(summary.records):
                points = record["curve"]
                axis.plot(
                    [p["seconds"] for p in points],
                    [p["single"] for p in points],
                    marker=".",
                    linewidth=1,
                    color=colors[summary.cell.method],
                    linestyle=("-", "--", ":", "-.")[same.index(summary) % 4],
                    label=None if i else label,
                )
        axis.set(title=DATASETS[dataset], xlabel="seconds of training")
        seconds = [x for line in axis.get_lines() for x in line.get_xdata()]
        if max(seconds) > 30 * min(seconds):
            axis.set_xscale("log")
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    axes[0].set_ylabel("test accuracy of one chain, %")


def _bars(figure: Any, some: list[Summary], group: str | None, kind: str) -> None:
    """Draw Fig. 6 or 7: test accuracy of one chain, with standard errors if there are several.

    The axes do not begin at zero, because the values differ by tenths of a percent.
    """
    datasets = [d for d in DATASETS if any(s.cell.dataset == d for s in some)]
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    kinds = [k for k in NAMES if any(getattr(s.cell, kind) == k for s in some)]
    groups = [g for g in NAMES if any(group and getattr(s.cell, group) == g for s in some)] or [""]
    handles: dict[str, Any] = {}
    for axis, dataset in zip(axes, datasets, strict=True):
        ends: list[float] = []
        by_cell = {s.cell: s for s in some if s.cell.dataset == dataset}
        for summary in by_cell.values():
            which = getattr(summary.cell, kind)
            number = summary.accuracy("single")
            assert number
            error = 0.0 if math.isnan(number.error) else number.error
            middle = (len(kinds) - 1) / 2
            x = groups.index(getattr(summary.cell, group) if group else "")
            x += (kinds.index(which) - middle) * 0.8 / len(kinds)
            handles[NAMES[which]] = axis.bar(
                x,
                number.mean,
                0.75 / len(kinds),
                yerr=error or None,
                color=f"C{kinds.index(which)}",
                capsize=3,
            )
            above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{number.mean:.2f}", (x, number.mean + error), fontsize=7, **above)
            ends += [number.mean - error, number.mean + error]
        room = max(0.6 * (max(ends) - min(ends)), 0.1)
        axis.set_ylim(max(0.0, min(ends) - room), max(ends) + room)
        axis.set_xticks(range(len(groups)), [NAMES.get(g, "") for g in groups])
        axis.set_title(f"{DATASETS[dataset]}")
    axes[0].set_ylabel("test accuracy of one chain, %")
    figure.suptitle("full" if some[0].is_full else f"scale {some[0].scale}", fontsize=8)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(kinds))
