"""A run as pictures: loss curves, the schedule, one prediction step by step, the embeddings.

Each is drawn once, as PNG for a file and as SVG for the page of :mod:`noprop.report.page`.
"""

import math
from pathlib import Path
from typing import Any

import torch

from noprop.data import Examples
from noprop.embeddings import separation
from noprop.errors import RunError
from noprop.model import Model
from noprop.predictions import read_predictions
from noprop.report.answers import draw_confusion, draw_mistakes, draw_reliability
from noprop.report.chain import check_example, draw_chain
from noprop.report.pictures import (
    FEW_POINTS,
    MANY_CLASSES,
    Draw,
    Picture,
    draw,
    draw_image,
    marker,
    short,
    whole_ticks,
)
from noprop.report.tables import FACT_NAMES
from noprop.run.metrics import read_metrics
from noprop.tensor_files import load_tensors

__all__ = ["draw_run"]


def draw_run(
    run: Path, model: Model, examples: Examples, example: int | None = None
) -> list[Picture]:
    """Draw every picture that a run has.

    Args:
        run: The run folder, for its metrics and the answers of its evaluation.
        model: The trained model.
        examples: The test part.
        example: Index of the example that is followed through the chain; one that is hard at first
            unless given.

    Raises:
        ConfigError: If matplotlib is not installed, or there is no such example.
    """
    check_example(examples, example)
    drawings: dict[str, Draw] = {
        "curves": lambda figure: _curves(figure, run, model),
        "chain": lambda figure: draw_chain(figure, model, examples, example),
    }
    if not model.config.method.stack:
        drawings["embeddings"] = lambda figure: _embeddings(figure, model)
    drawings |= _answers(run, model, examples)
    levels = model.method.schedule_table()
    if levels and "a" in levels[0]:
        drawings["schedule"] = lambda figure: _schedule(figure, levels)
    elif model.method.facts():
        drawings["schedule"] = lambda figure: _facts(figure, run)
    if model.config.method.learned:
        drawings["separation"] = lambda figure: _separation(figure, run)
    if model.config.method.embedding == "prototype":
        drawings["prototypes"] = lambda figure: _prototypes(figure, model)
    return [draw(name, drawing) for name, drawing in drawings.items()]


def _answers(run: Path, model: Model, examples: Examples) -> dict[str, Draw]:
    """Return the pictures of the answers of the evaluation; none for a run that kept none."""
    names = model.task.class_names
    try:
        stored = read_predictions(run, len(names))
    except RunError:
        return {}  # the page says why
    if stored is None:
        return {}
    found, _ = stored
    drawings: dict[str, Draw] = {
        "confusion": lambda figure: draw_confusion(figure, found, names),
        "reliability": lambda figure: draw_reliability(figure, found),
    }
    if examples.x.ndim == 4 and len(found.mistakes(1)):
        drawings["mistakes"] = lambda figure: draw_mistakes(figure, found, names, examples)
    return drawings


# -- training --------------------------------------------------------------------------------------


def _epochs(run: Path) -> list[dict[str, Any]]:
    events = [event for event in read_metrics(run) if event["event"] == "epoch"]
    if not events:
        raise ValueError("metrics.jsonl has no epoch")
    return events


def _curves(figure: Any, run: Path, model: Model) -> None:
    """Draw the losses of each unit without its weight, so that the blocks can be compared.

    The color tells the number of a unit, and the style its kind where there are two: layers and
    their inverses. Units without a number are black.
    """
    from matplotlib.cm import ScalarMappable

    losses: dict[str, dict[int, tuple[float | None, ...]]] = {}
    weights = {unit.name: unit.weight for unit in model.method.units}
    for e in _epochs(run):
        weight, pair = weights.get(e["unit"], 1.0), (e["loss"], e["validation_loss"])
        points = losses.setdefault(e["unit"], {})
        points[e["epoch"]] = tuple(None if loss is None else loss / weight for loss in pair)
    numbers = {name: int(name.rpartition("-")[2]) for name in losses if name[-1].isdigit()}
    kinds = sorted({name.rpartition("-")[0] for name in numbers}, reverse=True)
    scale, colors = _colors_by_t(max(numbers.values(), default=1))
    many = len(numbers) > FEW_POINTS
    barred = len(numbers) > 1 and kinds == ["block"]
    axes = figure.subplots(1, 2, sharey=True)
    for part, axis in enumerate(axes):
        for unit in sorted(losses, key=lambda name: numbers.get(name, math.inf)):
            look: dict[str, Any] = {"color": "black", "linestyle": "--", "label": unit}
            if unit in numbers:  # many lines are kept as pixels, or the SVG would be megabytes
                style = ("-", ":")[kinds.index(unit.rpartition("-")[0]) % 2]
                look = {"color": colors(scale(numbers[unit])), "linestyle": style}
                look |= {"rasterized": many} | ({} if barred else {"label": unit})
            points = {epoch: pair[part] for epoch, pair in sorted(losses[unit].items())}
            if None not in points.values():  # no validation part
                axis.plot(*zip(*points.items(), strict=True), marker=marker(points), lw=1.2, **look)
        axis.set(title=f"{('training', 'validation')[part]} loss", xlabel="epoch", yscale="log")
        whole_ticks(axis)
    weighted = any(weight != 1 for weight in weights.values())
    axes[0].set_ylabel("loss, divided by the unit's weight" if weighted else "loss")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize="small", ncols=1 + len(numbers) // 8 if not barred else 1)
    if barred:
        bar = figure.colorbar(ScalarMappable(scale, colors), ax=axes, label="block t")
        bar.locator.set_params(integer=True, steps=[1, 2, 5, 10])


def _colors_by_t(last: int) -> tuple[Any, Any]:
    """Return a scale and colors for 1..T: viridis without its yellow, which is faint on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap, Normalize

    part = matplotlib.colormaps["viridis"](torch.linspace(0, 0.88, 256).numpy())
    return Normalize(1, last), ListedColormap(part)


def _separation(figure: Any, run: Path) -> None:
    """Draw the least distance and the lengths of learned embeddings; epoch 0 is their start."""
    found: dict[int, list[dict[str, float]]] = {}
    start = run / "embedding.safetensors"
    if start.exists():
        lengths, least = separation(load_tensors(start)[0]["weight"])
        ends = {"least_length": lengths.min().item(), "greatest_length": lengths.max().item()}
        found[0] = [{"least_distance": least, **ends}]
    for e in _epochs(run):
        if e.get("embedding"):
            found.setdefault(e["epoch"], []).append(e["embedding"])
    if not found.keys() - {0}:
        raise ValueError("metrics.jsonl has no lengths of the embeddings")
    epochs = sorted(found)
    # The worst of each epoch, or a collapse between two blocks would not be seen.
    worst = {"least_distance": min, "least_length": min, "greatest_length": max}
    distance, least, greatest = (
        [choose(one[name] for one in found[epoch]) for epoch in epochs]
        for name, choose in worst.items()
    )
    left, right = figure.subplots(1, 2)
    left.plot(epochs, distance, marker=marker(epochs))
    change = f"{distance[0]:.3g} → {distance[-1]:.3g}"
    left.set(title=f"least distance: {change}", ylabel="min ‖u_i - u_j‖")
    right.fill_between(epochs, least, greatest, alpha=0.25, linewidth=0)
    for values, name, style in ((greatest, "greatest", "-"), (least, "least", "--")):
        right.plot(epochs, values, style, color="C0", marker=marker(epochs), label=name)
    right.set(title="lengths ‖u_y‖")
    right.legend()
    for axis in (left, right):
        axis.set(xlabel="epoch", ylim=(0, None))  # from 0, so that a collapse looks like one
        whole_ticks(axis)


# -- the schedule ----------------------------------------------------------------------------------


def _schedule(figure: Any, levels: list[dict[str, Any]]) -> None:
    """Draw signal and noise at each t, and the coefficients of each step."""
    left, right = figure.subplots(1, 2)
    power = torch.tensor([level["alpha_bar"] for level in levels])
    for name, values in (("ᾱ, signal power", power), ("1 - ᾱ, noise power", 1 - power)):
        left.plot(values.numpy(), marker=marker(levels), label=name)
    left.set(title="schedule: t = 0 is noise", xlabel="t", ylim=(0, 1))
    steps = levels[1:]
    a, b, c = ([step[name] for step in steps] for name in "abc")
    deviation = [variance**0.5 for variance in c]
    for name, values in (("a, of û", a), ("b, of the latent", b), ("√c, of the noise", deviation)):
        right.plot([step["t"] for step in steps], values, marker=marker(levels), label=name)
    right.set(title="coefficients of one step", xlabel="t", ylim=(0, 1))
    for axis in (left, right):
        axis.legend()
        whole_ticks(axis)


def _facts(figure: Any, run: Path) -> None:
    """Draw what a method reports after each epoch: lists over t, numbers over the epochs."""
    found = {e["epoch"]: e["facts"] for e in _epochs(run) if e.get("facts")}
    if not found:
        raise ValueError("metrics.jsonl has no facts of the method")
    epochs = sorted(found)
    lists = [name for name, value in found[epochs[-1]].items() if isinstance(value, list)]
    numbers = [name for name in found[epochs[-1]] if name not in lists]
    axes = figure.subplots(1, len(lists) + bool(numbers), squeeze=False)[0]
    scale, colors = _colors_by_t(max(len(found), 2))
    for axis, name in zip(axes, lists, strict=False):
        over_time = name == "gamma"
        for place, epoch in enumerate(epochs, start=1):
            values = found[epoch][name]
            t = torch.linspace(*((0, 1) if over_time else (1, len(values))), len(values)).tolist()
            label = f"epoch {epoch}" if epoch in (epochs[0], epochs[-1]) else None
            axis.plot(t, values, color=colors(scale(place)), label=label)
        axis.set(title=FACT_NAMES.get(name, name) + ": t = 0 is noise" * over_time, xlabel="t")
        axis.legend()
    for name in numbers:
        values, label = [found[epoch][name] for epoch in epochs], FACT_NAMES.get(name, name)
        if name == "alpha_bar_1":  # so near to 1 that only the rest shows a change
            values, label = [1 - value for value in values], f"1 - {label}"
        axes[-1].plot(epochs, values, marker=marker(epochs), label=label)
    if numbers:
        axes[-1].set(title="after each epoch", xlabel="epoch", yscale="log")
        whole_ticks(axes[-1])
        axes[-1].legend()


# -- the embeddings --------------------------------------------------------------------------------


def _embeddings(figure: Any, model: Model) -> None:
    """Draw the distances between class embeddings, and their lengths."""
    weight = model.method.embedding.weight.detach().cpu().double()
    names = [short(name, 12) for name in model.task.class_names]
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(distances.numpy(), cmap="magma", vmin=0, interpolation="nearest")
    figure.colorbar(shown, ax=left)
    left.set(title="distances ‖u_i - u_j‖", xlabel="class", ylabel="class")
    right.bar(range(len(weight)), weight.norm(dim=1).numpy(), width=0.9)
    right.set(title="lengths ‖u_y‖", xlabel="class")
    right.margins(x=0.01)
    if len(names) <= MANY_CLASSES:
        left.set_yticks(range(len(names)), names)
        for axis in (left, right):
            rotation = 90 if max(map(len, names)) > 2 else 0
            axis.set_xticks(range(len(names)), names, rotation=rotation)


def _prototypes(figure: Any, model: Model) -> None:
    """Draw the prototypes of the first hundred classes, each stretched to its own range."""
    weight = model.method.embedding.weight.detach().cpu()
    images = weight.unflatten(1, model.task.shape)[:100]
    rows = -(-len(images) // 10)
    figure.set_size_inches(9, 0.25 + 1.1 * rows)
    axes = figure.subplots(rows, 10, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, name in zip(axes, images, model.task.class_names, strict=False):
        draw_image(axis, image)
        axis.set_title(short(name, 13), fontsize=7)
