"""A run as pictures: loss curves, the schedule, a label appearing out of noise, the embeddings."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noprop.data import Examples
from noprop.errors import ConfigError
from noprop.randomness import generator
from noprop.schedules import alpha_bar
from noprop.training.evaluate import inputs, prepare
from noprop.training.runs import Model, read_metrics

__all__ = ["draw_run"]


def draw_run(run: Path, model: Model, examples: Examples, out: Path) -> list[Path]:
    """Draw everything that the run has, as PNG files.

    Args:
        run: the run folder, for its metrics.
        model: the trained model.
        examples: of which the first is followed through the chain, and a thousand are averaged.
        out: folder for the pictures.

    Returns:
        The files written.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'noprop[plots]'") from None
    matplotlib.use("agg")
    drawings: dict[str, Callable[[Any], None]] = {
        "schedule": lambda figure: _schedule(figure, model),
        "chain": lambda figure: _chain(figure, model, examples),
        "embeddings": lambda figure: _embeddings(figure, model),
    }
    if any(e["event"] == "epoch" for e in read_metrics(run)):
        drawings["curves"] = lambda figure: _curves(figure, run)
    if len(model.method.blocks[0].network.latent_shape) == 3:
        drawings["prototypes"] = lambda figure: _prototypes(figure, model)
    out.mkdir(parents=True, exist_ok=True)
    return [_save(out / f"{name}.png", draw) for name, draw in drawings.items()]


def _save(path: Path, draw: Callable[[Any], None]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    draw(figure)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        figure.savefig(temporary)
        temporary.replace(path)
    return path


def _curves(figure: Any, run: Path) -> None:
    """Each unit's own loss, over its first: units differ by the weights of Eq. 8."""
    values: dict[str, dict[int, tuple[float, float | None]]] = {}
    for e in read_metrics(run):
        if e["event"] == "epoch":
            pair = (e["loss"], e["validation_loss"])
            values.setdefault(e["unit"], {})[e["epoch"]] = pair
    axes = figure.subplots(1, 2, sharey=True)
    names = sorted(values, key=lambda n: int(n[6:]) if n.startswith("block-") else 10**9)
    for i, name in enumerate(names):
        color = f"C{i % 10}"
        epochs = sorted(values[name])
        for axis, which in zip(axes, (0, 1), strict=True):
            y = [values[name][e][which] for e in epochs]
            if all(v is not None for v in y):
                axis.plot(epochs, y, marker=".", color=color, label=name)
    for axis, title in zip(axes, ("training", "validation"), strict=True):
        axis.set(title=f"{title} loss of each unit", xlabel="epoch", yscale="log")
    axes[0].set_ylabel("nats")
    axes[1].legend(fontsize=7, ncols=2)


def _schedule(figure: Any, model: Model) -> None:
    gamma, k = model.method.gamma, model.method.coefficients
    left, right = figure.subplots(1, 2)
    left.plot(alpha_bar(gamma).numpy(), marker=".", label="ᾱ, signal power")
    left.plot(alpha_bar(-gamma).numpy(), marker=".", label="1 - ᾱ, noise power")
    left.set(title="schedule: t = 0 is noise", xlabel="t", ylim=(0, 1))
    left.legend()
    steps = range(1, len(k) + 1)
    for name, values in (
        ("a, of the guess", k.a),
        ("b, of the latent", k.b),
        ("√c, noise", k.c.sqrt()),
    ):
        right.plot(steps, values.numpy(), marker=".", label=name)
    right.set(title="one step of the chain", xlabel="t", ylim=(0, 1))
    right.legend()


def _chain(figure: Any, model: Model, examples: Examples) -> None:
    """One input, its latent step by step as nearness to each class, and each block's guess."""
    x = inputs(model, examples.x[:1])
    draws = generator(model.config.train.seed, "plot", device=model.device)
    p = model.method.predict(x, draws, prepared=prepare(model, x))
    weight = model.method.embedding.weight.detach()
    z = p.latents[:, 0]
    cosine = (
        torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(weight, dim=1).T
    )
    guesses = p.path[:, 0]
    raw, names = examples.x[0], model.task.class_names
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.6, 1.6))
    if raw.ndim == 3:
        image = raw.permute(1, 2, 0).cpu().numpy()
        left.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray")
    left.set(title=f"x, a {names[int(examples.y[0])]}", xticks=[], yticks=[])
    few = len(names) <= 20
    panels = (
        (middle, cosine.cpu(), "latent z_t: cosine to each u_y", "RdBu_r", -1, 0),
        (right, guesses.cpu(), "block t's probabilities", "viridis", 0, 1),
    )
    for axis, values, title, colors, low, first in panels:
        extent = (first - 0.5, first + len(values) - 0.5, len(names) - 0.5, -0.5)
        drawn = axis.imshow(
            values.T.numpy(), aspect="auto", cmap=colors, vmin=low, vmax=1, extent=extent,
            origin="upper", interpolation="nearest",
        )  # fmt: skip
        axis.set(title=title, xlabel="t")
        if few:
            axis.set_yticks(range(len(names)), names)
        figure.colorbar(drawn, ax=axis)
    figure.suptitle("a label appears out of noise")


def _embeddings(figure: Any, model: Model) -> None:
    weight = model.method.embedding.weight.detach().cpu().double()
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    left, right = figure.subplots(1, 2)
    figure.colorbar(left.imshow(distances.numpy(), cmap="magma"), ax=left)
    left.set(title="distances between embeddings", xlabel="class", ylabel="class")
    right.bar(range(len(weight)), weight.norm(dim=1).numpy())
    right.set(title="lengths ‖u_y‖", xlabel="class")


def _prototypes(figure: Any, model: Model) -> None:
    """The first hundred classes' prototypes, each stretched to its own range."""
    shape = model.method.blocks[0].network.latent_shape
    images = model.method.embedding.weight.detach().cpu().unflatten(1, shape)[:100]
    columns = 10
    axes = figure.subplots(-(-len(images) // columns), columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, name in zip(axes, images, model.task.class_names, strict=False):
        low, high = image.min(), image.max()
        pixels = ((image - low) / (high - low).clamp_min(1e-9)).permute(1, 2, 0)
        axis.imshow(
            pixels.numpy() if pixels.shape[2] == 3 else pixels[:, :, 0].numpy(), cmap="gray"
        )
        axis.set_title(name, fontsize=6)
