"""Figs. 3, 4, 6 and 7 of what was found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from noprop.experiments.cells import EXPERIMENTS
from noprop.experiments.paper import DATASETS, METHODS
from noprop.experiments.records import Summary
from noprop.experiments.tables import scale_text
from noprop.report.pictures import Picture, draw
from noprop.training.checkpoint import load_tensors
from noprop.training.model import load_model

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
    """The pictures of an experiment: of each scale one, none where there is nothing to draw.

    Args:
        name: of the experiment.
        found: what is done.
        runs: where run folders are, which Fig. 3 reads.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    cells = {cell.name for cell in EXPERIMENTS[name]}
    mine = [s for s in found if s.cell in cells]
    drawings: dict[str, Callable[[Any, list[Summary]], None]] = {
        "fig3": lambda figure, some: _prototypes(figure, some[0], runs),
        "fig4": _accuracy_in_time,
        "fig6": lambda figure, some: _bars(figure, some, "embedding", "readout"),
        "fig7": lambda figure, some: _bars(figure, some, None, "embedding"),
    }
    pictures = []
    for scale in dict.fromkeys(s.scale for s in mine):
        some = [s for s in mine if s.scale == scale]
        some = [s for s in some if name != "fig3" or _folder(s, runs).is_dir()]
        some = [s for s in some if name != "fig4" or s.records[0]["curve"]]
        if some and name in drawings:
            drawing = drawings[name]
            pictures.append(draw(f"{name}-{scale}", lambda figure, d=drawing, s=some: d(figure, s)))
    return pictures


def _folder(summary: Summary, runs: Path) -> Path:
    return runs / summary.scale / f"{summary.cell}-seed-{summary.seeds[0]}"


def _prototypes(figure: Any, summary: Summary, runs: Path) -> None:
    """Fig. 3: the images that embeddings start from, and what they are after training."""
    folder = _folder(summary, runs)
    model = load_model(folder, device="cpu")
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
    figure.suptitle(f"{summary.cell}, seed {summary.seeds[0]}: {scale_text(summary)}", fontsize=9)


def _accuracy_in_time(figure: Any, some: list[Summary]) -> None:
    """Fig. 4: test accuracy of one chain against seconds of training, a line for each seed."""
    datasets = [d for d in DATASETS if any(s.dataset == d for s in some)]
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axis, dataset in zip(axes, datasets, strict=True):
        for color, method in zip(("tab:blue", "tab:orange", "tab:green"), ("ct", "fm", "adjoint"),
                                 strict=True):  # fmt: skip
            for summary in [s for s in some if (s.dataset, s.method) == (dataset, method)]:
                for i, record in enumerate(summary.records):
                    points = record["curve"]
                    axis.plot(
                        [p["seconds"] for p in points],
                        [p["single"] for p in points],
                        marker=".",
                        color=color,
                        label=METHODS[method] if i == 0 else None,
                    )
        axis.set(title=DATASETS[dataset], xlabel="seconds of training", xscale="log")
        axis.legend()
    axes[0].set_ylabel("test accuracy of one chain, %")


def _bars(figure: Any, some: list[Summary], group: str | None, kind: str) -> None:
    """Figs. 6 and 7: test accuracy of one chain, with standard errors where there are several."""
    datasets = [d for d in DATASETS if any(s.dataset == d for s in some)]
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    kinds = [k for k in NAMES if any(getattr(s, kind) == k for s in some)]
    groups = [g for g in NAMES if any(group and getattr(s, group) == g for s in some)] or [""]
    for axis, dataset in zip(axes, datasets, strict=True):
        here = [s for s in some if s.dataset == dataset]
        lows: list[float] = []
        for i, which in enumerate(kinds):
            for j, place in enumerate(groups):
                found = [
                    s
                    for s in here
                    if getattr(s, kind) == which and (group is None or getattr(s, group) == place)
                ]
                for summary in found[:1]:
                    number = summary.accuracy("single")
                    assert number
                    x = j + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
                    axis.bar(
                        x,
                        number.mean,
                        0.75 / len(kinds),
                        yerr=number.error if number.error == number.error else None,
                        color=f"C{i}",
                        capsize=3,
                        label=NAMES[which] if j == 0 or not lows else None,
                    )
                    lows.append(number.mean - (number.error if number.error > 0 else 0))
        axis.set_xticks(range(len(groups)), [NAMES.get(g, "") for g in groups])
        span = 100 - min(lows)
        axis.set_ylim(max(0, min(lows) - 0.5 * span), min(100, max(lows) + span))
        axis.set_title(DATASETS[dataset])
    axes[0].set_ylabel("test accuracy of one chain, %")
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(),
                                                              strict=True)}  # fmt: skip
    axes[0].legend(handles.values(), handles.keys(), loc="lower left", fontsize=8)
