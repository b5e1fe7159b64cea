"""A run as pictures: loss curves, the schedule, a label appearing out of noise, the embeddings.

Each is drawn once and kept both as PNG, for a file, and as SVG, for the page of
:mod:`noprop.report.page`. What cannot be drawn is a picture too: one that says why.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noprop.data import Examples
from noprop.embeddings import separation
from noprop.evaluate import inputs, prepare
from noprop.methods.dt import DiscreteNoProp
from noprop.model import Model
from noprop.randomness import generator
from noprop.report.pictures import Draw, Picture, draw
from noprop.report.tables import FACTS
from noprop.run.metrics import read_metrics
from noprop.schedules import alpha_bar
from noprop.tensor_files import load_tensors

__all__ = ["draw_run"]

MANY_CLASSES = 20  # as many names as stand legibly under one another
WHOLE = {"integer": True, "min_n_ticks": 1}  # of ticks: there is no epoch 1.5
FEW_LINES = 40  # more of them are pixels in an SVG too: T = 100 would be megabytes of paths


def draw_run(run: Path, model: Model, examples: Examples) -> list[Picture]:
    """Draw everything that the run has.

    Args:
        run: the run folder, for its metrics.
        model: the trained model.
        examples: of which the first is followed through the chain.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    drawings: dict[str, Draw] = {
        "curves": lambda figure: _curves(figure, run),
        "chain": lambda figure: _chain(figure, model, examples),
        "embeddings": lambda figure: _embeddings(figure, model),
    }
    method = model.method
    if isinstance(method, DiscreteNoProp):
        drawings["schedule"] = lambda figure: _schedule(figure, method)
    elif method.facts():
        drawings["schedule"] = lambda figure: _facts(figure, run)
    if model.config.method.learned:
        drawings["separation"] = lambda figure: _separation(figure, run)
    if model.config.method.embedding == "prototype":
        drawings["prototypes"] = lambda figure: _prototypes(figure, model)
    return [draw(name, drawing) for name, drawing in drawings.items()]


# -- training ------------------------------------------------------------------------------------


def _epochs(run: Path) -> list[dict[str, Any]]:
    events = [e for e in read_metrics(run) if isinstance(e, dict) and e.get("event") == "epoch"]
    if not events:
        raise ValueError("metrics.jsonl tells of no epoch")
    return events


def _curves(figure: Any, run: Path) -> None:
    """Each unit's own loss; blocks differ by the weights of Eq. 8, hence the logarithm."""
    from matplotlib.cm import ScalarMappable

    values: dict[str, dict[int, tuple[float, float | None]]] = {}
    for e in _epochs(run):
        pair = (e["loss"], e["validation_loss"])
        values.setdefault(e["unit"], {})[e["epoch"]] = pair
    blocks = {int(n[6:]): v for n, v in values.items() if n.startswith("block-")}
    others = {n: v for n, v in values.items() if not n.startswith("block-")}
    colors = _colors_by_t(max(blocks, default=1))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, which in zip(axes, (0, 1), strict=True):
        for t in sorted(blocks):
            look = {"color": colors[1](colors[0](t)), "rasterized": len(blocks) > FEW_LINES}
            _line(axis, blocks[t], which, look | ({"label": "block-1"} if len(blocks) == 1 else {}))
        for unit, points in others.items():
            _line(axis, points, which, {"color": "black", "linestyle": "--", "label": unit})
        axis.set(title=f"{('training', 'validation')[which]} loss", xlabel="epoch", yscale="log")
        axis.xaxis.get_major_locator().set_params(**WHOLE)
    axes[0].set_ylabel("nats")
    if others or len(blocks) == 1:
        axes[0].legend()
    if len(blocks) > 1:
        bar = figure.colorbar(ScalarMappable(*colors), ax=axes, label="block t")
        bar.locator.set_params(integer=True, steps=[1, 2, 5, 10])


def _colors_by_t(last: int) -> tuple[Any, Any]:
    """Colours of blocks 1..T: viridis without its yellow, which is faint on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap, Normalize

    part = matplotlib.colormaps["viridis"](torch.linspace(0, 0.88, 256).numpy())
    return Normalize(1, last), ListedColormap(part)


def _line(axis: Any, points: dict[int, Any], which: int, look: dict[str, Any]) -> None:
    epochs = sorted(points)
    y = [points[e][which] for e in epochs]
    if all(v is not None for v in y):
        axis.plot(epochs, y, marker="." if len(epochs) <= 30 else None, linewidth=1.2, **look)


def _separation(figure: Any, run: Path) -> None:
    """Least distance and lengths of learned embeddings in each epoch; epoch 0 is their start."""
    points: dict[int, tuple[float, float, float]] = {}
    start = run / "embedding.safetensors"
    if start.exists():
        lengths, distance = separation(load_tensors(start)[0]["weight"])
        points[0] = (distance, lengths.min().item(), lengths.max().item())
    found = [e for e in _epochs(run) if e.get("embedding")]
    if not found:
        raise ValueError("metrics.jsonl tells nothing of the embeddings")
    for e in found:  # the worst of an epoch: a collapse between two blocks must be seen
        s, none = e["embedding"], (float("inf"), float("inf"), 0.0)
        worst = points.get(e["epoch"], none)
        points[e["epoch"]] = (
            min(worst[0], s["least_distance"]),
            min(worst[1], s["least_length"]),
            max(worst[2], s["greatest_length"]),
        )
    epochs = sorted(points)
    distance, least, greatest = zip(*(points[e] for e in epochs), strict=True)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, distance, marker=_marker(epochs))
    change = f"{distance[0]:.3g} → {distance[-1]:.3g}"
    left.set(title=f"least distance: {change}", ylabel="min ‖u_i - u_j‖")
    right.fill_between(epochs, least, greatest, alpha=0.25, linewidth=0)
    for values, name, style in ((greatest, "greatest", "-"), (least, "least", "--")):
        right.plot(epochs, values, style, color="C0", marker=_marker(epochs), label=name)
    right.set(title="lengths ‖u_y‖")
    right.legend()
    for axis in (left, right):
        axis.set(xlabel="epoch", ylim=(0, None))  # from 0, so that a collapse is seen as one
        axis.xaxis.get_major_locator().set_params(**WHOLE)


def _marker(points: Any) -> str | None:
    return "." if len(points) <= FEW_LINES else None


# -- the chain -------------------------------------------------------------------------------------


def _schedule(figure: Any, method: DiscreteNoProp) -> None:
    gamma, k = method.gamma.cpu(), method.coefficients
    left, right = figure.subplots(1, 2)
    for name, values in (("ᾱ, signal power", gamma), ("1 - ᾱ, noise power", -gamma)):
        left.plot(alpha_bar(values).numpy(), marker=_marker(gamma), label=name)
    left.set(title="schedule: t = 0 is noise", xlabel="t", ylim=(0, 1))
    steps = range(1, len(k) + 1)
    for name, values in (
        ("a, of the guess", k.a),
        ("b, of the latent", k.b),
        ("√c, noise", k.c.sqrt()),
    ):
        right.plot(steps, values.cpu().numpy(), marker=_marker(gamma), label=name)
    right.set(title="one step of the chain", xlabel="t", ylim=(0, 1))
    for axis in (left, right):
        axis.legend()
        axis.xaxis.get_major_locator().set_params(**WHOLE)


def _facts(figure: Any, run: Path) -> None:
    """What a method told of itself after every epoch: lists as curves, numbers over the epochs."""
    found = {e["epoch"]: e["facts"] for e in _epochs(run) if e.get("facts")}
    if not found:
        raise ValueError("metrics.jsonl tells no facts of the method")
    last = found[max(found)]
    lists = [name for name, value in last.items() if isinstance(value, list)]
    numbers = [name for name, value in last.items() if not isinstance(value, list)]
    axes = figure.subplots(1, len(lists) + bool(numbers), squeeze=False)[0]
    for axis, name in zip(axes, lists, strict=False):
        shades = _colors_by_t(max(len(found), 2))
        for place, epoch in enumerate(sorted(found), start=1):
            values = found[epoch][name]
            ends = (0.0, 1.0) if name == "gamma" else (1, len(values))
            t = torch.linspace(*ends, len(values)).tolist()
            label = f"epoch {epoch}" if epoch in (min(found), max(found)) else None
            axis.plot(t, values, color=shades[1](shades[0](place)), label=label)
        noise = ": t = 0 is noise" if name == "gamma" else ""
        axis.set(title=FACTS.get(name, name) + noise, xlabel="t")
        axis.legend()
    for name in numbers:
        values, words = [found[e][name] for e in sorted(found)], FACTS.get(name, name)
        if name == "alpha_bar_1":  # so near to 1 that only the rest shows a change
            values, words = [1 - v for v in values], f"1 - {words}"
        axes[-1].plot(sorted(found), values, marker=_marker(found), label=words)
    if numbers:
        axes[-1].set(title="after each epoch", xlabel="epoch", yscale="log")
        axes[-1].xaxis.get_major_locator().set_params(**WHOLE)
        axes[-1].legend()


def _chain(figure: Any, model: Model, examples: Examples) -> None:
    """One input, its latent step by step as nearness to each class, and the guesses on the way."""
    if len(examples) == 0:
        raise ValueError("there is no example to follow")
    cosine, guesses, last = _follow(model, examples.x[:1])
    names, label = model.task.class_names, int(examples.y[0])
    shown = _likeliest(cosine if guesses is None else guesses, label)
    right = _input_beside(figure, examples.x[0], f"x: {_short(names[label])}")
    panels = [(cosine, "latent z_t: cosine to each u_y", "RdBu_r", -1, 0.0)]
    if guesses is not None:
        discrete = isinstance(model.method, DiscreteNoProp)
        title = "block t's probabilities" if discrete else "probabilities guessed on the way"
        panels.append((guesses, title, "viridis", 0, last / len(guesses)))
    axes = right.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (values, title, colors, low, first) in zip(axes, panels, strict=True):
        half = (last - first) / max(1, len(values) - 1) / 2 or 0.5
        extent = (first - half, last + half, len(shown) - 0.5, -0.5)
        drawn = axis.imshow(
            values[:, shown].T.numpy(), aspect="auto", cmap=colors, vmin=low, vmax=1,
            extent=extent, interpolation="nearest",
        )  # fmt: skip
        axis.set(title=title, xlabel="t")
        if last > 1:
            axis.xaxis.get_major_locator().set_params(**WHOLE)
        right.colorbar(drawn, ax=axis)
        axis.tick_params(labelleft=axis is axes[0])
    axes[0].set_yticks(range(len(shown)), [_short(names[i]) for i in shown])
    axes[0].get_yticklabels()[shown.index(label)].set_fontweight("bold")
    few = f" ({len(shown)} likeliest of {len(names)} classes)" if len(shown) < len(names) else ""
    figure.suptitle("a label appears out of noise" + few)


def _follow(model: Model, raw: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Cosine of z_t to each class, (L, m), the guesses on the way, (P, m), and the last time."""
    x = inputs(model, raw)
    draws = generator(model.config.train.seed, "plot", device=model.device)
    p = model.method.predict(x, draws, prepared=prepare(model, x))
    unit = torch.nn.functional.normalize(model.method.embedding.weight.detach(), dim=1)
    cosine = torch.nn.functional.normalize(p.latents[:, 0], dim=1) @ unit.T
    guesses = None if p.path is None else p.path[:, 0].float().cpu()
    return cosine.cpu(), guesses, p.times[-1].item()


def _likeliest(guesses: Tensor, label: int) -> list[int]:
    """All classes where few; else the label and those that some block thinks likeliest."""
    if guesses.shape[1] <= MANY_CLASSES:
        return list(range(guesses.shape[1]))
    best = guesses.max(dim=0).values
    best[label] = torch.inf
    return sorted(best.topk(12).indices.tolist())


def _input_beside(figure: Any, raw: Tensor, title: str) -> Any:
    """Draw x on the left, where it is an image, and return the rest of the figure."""
    if raw.ndim != 3:
        return figure
    left, right = figure.subfigures(1, 2, width_ratios=(1, 3.4))
    axis = left.subplots()
    _image(axis, raw.cpu())
    axis.set(title=title, xticks=[], yticks=[])
    return right


def _image(axis: Any, image: Tensor) -> None:
    """An image (C, H, W), uint8 or stretched to its own range."""
    if image.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = (image - low) / (high - low).clamp_min(1e-9)
    pixels = image.permute(1, 2, 0).numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray")


def _short(name: str, length: int = 16) -> str:
    """A class name as matplotlib can set it in one line: a ``$`` would begin a formula."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    name = name if len(name) <= length else name[: length - 1] + "…"
    return name.replace("$", r"\$")


# -- the embeddings --------------------------------------------------------------------------------


def _embeddings(figure: Any, model: Model) -> None:
    weight = model.method.embedding.weight.detach().cpu().double()
    names = [_short(n, 12) for n in model.task.class_names]
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
    """The first hundred classes' prototypes, each stretched to its own range."""
    weight = model.method.embedding.weight.detach().cpu()
    images = weight.unflatten(1, model.task.shape)[:100]
    rows = -(-len(images) // 10)
    figure.set_size_inches(9, 0.25 + 1.1 * rows)
    axes = figure.subplots(rows, 10, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, name in zip(axes, images, model.task.class_names, strict=False):
        _image(axis, image)
        axis.set_title(_short(name, 13), fontsize=7)
