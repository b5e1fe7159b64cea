"""A run as pictures: loss curves, the schedule, one prediction step by step, the embeddings.

Each is drawn once, as PNG for a file and as SVG for the page of :mod:`noprop.report.page`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noprop.data import Examples
from noprop.embeddings import separation
from noprop.evaluate import inputs, prepare
from noprop.model import Model
from noprop.randomness import generator
from noprop.report.pictures import FEW_POINTS, Draw, Picture, draw, marker, whole_ticks
from noprop.report.tables import FACT_NAMES
from noprop.run.metrics import read_metrics
from noprop.tensor_files import load_tensors

__all__ = ["draw_run"]

MANY_CLASSES = 20  # more names do not fit under one another


def draw_run(run: Path, model: Model, examples: Examples) -> list[Picture]:
    """Draw every picture that a run has.

    Args:
        run: The run folder, for its metrics.
        model: The trained model.
        examples: Examples, the first of which is followed through the chain.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    drawings: dict[str, Draw] = {
        "curves": lambda figure: _curves(figure, run),
        "chain": lambda figure: _chain(figure, model, examples),
        "embeddings": lambda figure: _embeddings(figure, model),
    }
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


# -- training --------------------------------------------------------------------------------------


def _epochs(run: Path) -> list[dict[str, Any]]:
    events = [event for event in read_metrics(run) if event["event"] == "epoch"]
    if not events:
        raise ValueError("metrics.jsonl has no epoch")
    return events


def _curves(figure: Any, run: Path) -> None:
    """Draw the losses of each unit; blocks differ by the weights of Eq. 8, hence the logarithm."""
    from matplotlib.cm import ScalarMappable

    losses: dict[str, dict[int, tuple[float, float | None]]] = {}
    for e in _epochs(run):
        losses.setdefault(e["unit"], {})[e["epoch"]] = (e["loss"], e["validation_loss"])
    blocks = {name: int(name[6:]) for name in losses if name.startswith("block-")}
    scale, colors = _colors_by_t(max(blocks.values(), default=1))
    many = len(blocks) > FEW_POINTS
    axes = figure.subplots(1, 2, sharey=True)
    for part, axis in enumerate(axes):
        for unit in sorted(losses, key=lambda name: blocks.get(name, math.inf)):
            look: dict[str, Any] = {"color": "black", "linestyle": "--", "label": unit}
            if unit in blocks:  # many lines are kept as pixels, or the SVG would be megabytes
                look = {"color": colors(scale(blocks[unit])), "rasterized": many}
                look |= {"label": unit} if len(blocks) == 1 else {}
            points = {epoch: pair[part] for epoch, pair in sorted(losses[unit].items())}
            if None not in points.values():  # no validation part
                axis.plot(*zip(*points.items(), strict=True), marker=marker(points), lw=1.2, **look)
        axis.set(title=f"{('training', 'validation')[part]} loss", xlabel="epoch", yscale="log")
        whole_ticks(axis)
    axes[0].set_ylabel("nats")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend()
    if len(blocks) > 1:
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


# -- one prediction --------------------------------------------------------------------------------


def _chain(figure: Any, model: Model, examples: Examples) -> None:
    """Draw one input, its latent as nearness to each class, and the probabilities at each step."""
    if len(examples) == 0:
        raise ValueError("there is no example to follow")
    cosine, path, end = _follow(model, examples.x[:1])
    names, label = model.task.class_names, int(examples.y[0])
    shown = _likeliest(cosine if path is None else path, label)
    panels = [(cosine, "latent z_t: cosine to each u_y", "RdBu_r", -1, 0.0)]
    if path is not None:
        panels.append((path, "class probabilities at t", "viridis", 0, end / len(path)))
    right = _draw_input(figure, examples.x[0], f"x: {_short(names[label])}")
    axes = right.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (values, title, colors, low, start) in zip(axes, panels, strict=True):
        half = (end - start) / max(1, len(values) - 1) / 2 or 0.5
        drawn = axis.imshow(
            values[:, shown].T.numpy(), aspect="auto", cmap=colors, vmin=low, vmax=1,
            extent=(start - half, end + half, len(shown) - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        axis.set(title=title, xlabel="t")
        axis.tick_params(labelleft=axis is axes[0])
        right.colorbar(drawn, ax=axis)
        if end > 1:
            whole_ticks(axis)
    axes[0].set_yticks(range(len(shown)), [_short(names[i]) for i in shown])
    axes[0].get_yticklabels()[shown.index(label)].set_fontweight("bold")
    few = f" ({len(shown)} likeliest of {len(names)} classes)" if len(shown) < len(names) else ""
    figure.suptitle("one prediction, from noise to label" + few)


def _follow(model: Model, raw: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Return the cosine of z_t to each class (L, m), the path (P, m) if any, and the last time."""
    x = inputs(model, raw)
    draws = generator(model.config.train.seed, "plot", device=model.device)
    p = model.method.predict(x, draws, prepared=prepare(model, x))
    unit = torch.nn.functional.normalize(model.method.embedding.weight.detach(), dim=1)
    cosine = torch.nn.functional.normalize(p.latents[:, 0], dim=1) @ unit.T
    path = None if p.path is None else p.path[:, 0].float().cpu()
    return cosine.cpu(), path, p.times[-1].item()


def _likeliest(values: Tensor, label: int) -> list[int]:
    """Return all classes where they are few, or else the label and the likeliest at some step."""
    if values.shape[1] <= MANY_CLASSES:
        return list(range(values.shape[1]))
    best = values.max(dim=0).values
    best[label] = torch.inf
    return sorted(best.topk(12).indices.tolist())


def _draw_input(figure: Any, raw: Tensor, title: str) -> Any:
    """Draw x on the left if it is an image, and return the rest of the figure."""
    if raw.ndim != 3:
        return figure
    left, right = figure.subfigures(1, 2, width_ratios=(1, 3.4))
    axis = left.subplots()
    _draw_image(axis, raw.cpu())
    axis.set(title=title, xticks=[], yticks=[])
    return right


def _draw_image(axis: Any, image: Tensor) -> None:
    """Draw an image (C, H, W), of uint8 or stretched to its own range."""
    if image.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = (image - low) / (high - low).clamp_min(1e-9)
    pixels = image.permute(1, 2, 0).numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray")


def _short(name: str, length: int = 16) -> str:
    """Return a class name in one line, in which ``$`` begins no formula of matplotlib."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    name = name if len(name) <= length else name[: length - 1] + "…"
    return name.replace("$", r"\$")


# -- the embeddings --------------------------------------------------------------------------------


def _embeddings(figure: Any, model: Model) -> None:
    """Draw the distances between class embeddings, and their lengths."""
    weight = model.method.embedding.weight.detach().cpu().double()
    names = [_short(name, 12) for name in model.task.class_names]
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
        _draw_image(axis, image)
        axis.set_title(_short(name, 13), fontsize=7)
