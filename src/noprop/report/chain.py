"""One prediction step by step: which example is followed, its chain, and the chain as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from noprop.data import Examples
from noprop.errors import ConfigError
from noprop.evaluate import inputs, prepare
from noprop.methods.base import Prediction
from noprop.model import Model
from noprop.randomness import generator
from noprop.report.pictures import MANY_CLASSES, draw_image, short, whole_ticks

__all__ = [
    "check_example",
    "choose_example",
    "cosines",
    "Panel",
    "draw_chain",
    "draw_input",
    "draw_panel",
    "likeliest",
    "one_chain",
    "panels_of",
    "predicts_in_steps",
]

CANDIDATES = 300  # examples among which the one to follow is chosen
FOLLOWED = 5  # of those, looked at more closely


def check_example(examples: Examples, example: int | None) -> None:
    """Check the index of the example to follow, where one is given.

    Raises:
        ConfigError: If there is no such example.
    """
    if example is not None and not 0 <= example < len(examples):
        raise ConfigError(
            f"example: wanted a number of a test example, 0 to {len(examples) - 1}, got {example}"
        )


def choose_example(model: Model, examples: Examples, example: int | None) -> int:
    """Return the index of the example to follow: one that is hard at first, unless it is given.

    Raises:
        ConfigError: If there is no such example.
    """
    check_example(examples, example)
    if len(examples) == 0:
        raise ConfigError("there is no example to follow")
    return _hard_at_first(model, examples) if example is None else example


@dataclass(frozen=True)
class Panel:
    """A picture of numbers from -1 or 0 to 1, one for each class at each level or step.

    Attributes:
        title: What the numbers are.
        values: Shape (L, m).
        start: Time of the first row.
        end: Time of the last row.
        colors: Name of the colour map.
        low: Number that has the first colour.
        unit: What the time counts.
    """

    title: str
    values: Float[Tensor, "levels classes"]
    start: float
    end: float
    colors: str
    low: float
    unit: str = "t"


def panels_of(model: Model, p: Prediction) -> list[Panel]:
    """Return the latent of the first chain, and the guesses if any, of the first example.

    A stack has its answers in place of both.
    """
    end = p.times[-1].item()
    if model.config.method.stack:
        answers = p.latents[1:, 0].float().cpu()  # one-hot embeddings: z_t are probabilities
        title = "class probabilities of each answer"
        return [Panel(title, answers, 1.0, end, "viridis", 0.0, "answer")]
    near = cosines(model, p)[:, 0]
    panels = [Panel("latent z_t: cosine to each u_y", near, 0.0, end, "RdBu_r", -1.0)]
    if p.path is not None:
        path = p.path[:, 0].float().cpu()
        start = end / len(path)
        panels.append(Panel("class probabilities at t", path, start, end, "viridis", 0.0))
    return panels


def draw_panel(axis: Any, panel: Panel, shown: Sequence[int]) -> Any:
    """Draw the numbers of some classes over the time, and return what a colour bar is made from."""
    half = (panel.end - panel.start) / max(1, len(panel.values) - 1) / 2 or 0.5
    drawn = axis.imshow(
        panel.values[:, shown].T.numpy(), aspect="auto", cmap=panel.colors, vmin=panel.low, vmax=1,
        extent=(panel.start - half, panel.end + half, len(shown) - 0.5, -0.5),
        interpolation="nearest",
    )  # fmt: skip
    axis.set(title=panel.title, xlabel=panel.unit)
    if panel.end > 1 or panel.end == panel.start:
        whole_ticks(axis)
    return drawn


def draw_chain(figure: Any, model: Model, examples: Examples, example: int | None) -> None:
    """Draw one input, its latent as nearness to each class, and the probabilities at each step.

    Of a stack, the input and the probabilities of each answer.
    """
    chosen = choose_example(model, examples, example)
    panels = panels_of(model, one_chain(model, examples.x[chosen : chosen + 1]))
    names, label = model.task.class_names, int(examples.y[chosen])
    shown = likeliest(panels[-1].values, label)
    right = draw_input(figure, examples.x[chosen], f"x, true class {short(names[label])}")
    axes = right.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        drawn = draw_panel(axis, panel, shown)
        axis.tick_params(labelleft=axis is axes[0])
        right.colorbar(drawn, ax=axis)
    axes[0].set_yticks(range(len(shown)), [short(names[i]) for i in shown])
    axes[0].get_yticklabels()[shown.index(label)].set_fontweight("bold")
    few = f" ({len(shown)} likeliest of {len(names)} classes)" if len(shown) < len(names) else ""
    way = "" if model.config.method.stack else ", from noise to label"
    figure.suptitle(f"test example {chosen}{way}{few}")


def predicts_in_steps(model: Model) -> bool:
    """Whether a prediction has steps, which all methods have but stacks that answer once."""
    return not model.config.method.stack or model.method.num_steps > 1


def _hard_at_first(model: Model, examples: Examples) -> int:
    """Return the index of an example whose label is unlikely at first and predicted at the end.

    Candidates are ranked by one chain of each, computed together. The first ones are followed
    again as they will be drawn, because the noise of a chain depends on its batch.
    """
    some = examples.take(torch.arange(min(CANDIDATES, len(examples)), device=examples.y.device))
    ranked = _late(model, one_chain(model, some.x), some.y).argsort(descending=True, stable=True)
    best = ranked[:FOLLOWED].tolist()
    scores = [_late(model, one_chain(model, some.x[i : i + 1]), some.y[i : i + 1]) for i in best]
    return best[int(torch.cat(scores).argmax())]


def _late(model: Model, p: Prediction, y: Tensor) -> Tensor:
    """Return how late each true class appears (B,): its value at the end minus that at first.

    A value is the class's probability where the method has such at every step, or its cosine to the
    latent. A wrong end counts as -2, less than any other.
    """
    values = cosines(model, p) if p.path is None else p.path.float().cpu()
    own = values[:, torch.arange(len(y)), y.cpu()]
    late = own[-1] - own[: max(1, len(own) // 3)].mean(dim=0)
    right = (values[-1].argmax(dim=1) == y.cpu()) & (p.single.argmax(dim=1).cpu() == y.cpu())
    return torch.where(right, late, -2.0)


def one_chain(model: Model, raw: Tensor) -> Prediction:
    """Return a chain of each example."""
    x = inputs(model, raw)
    draws = generator(model.config.train.seed, "plot", device=model.device)
    return model.method.predict(x, draws, prepared=prepare(model, x))


def cosines(model: Model, p: Prediction) -> Tensor:
    """Return the cosine of z_t to the embedding of each class, shape (L, B, m)."""
    unit = torch.nn.functional.normalize(model.method.embedding.weight.detach(), dim=1)
    return (torch.nn.functional.normalize(p.latents, dim=2) @ unit.T).cpu()


def likeliest(values: Tensor, label: int | None = None) -> list[int]:
    """Return all classes where they are few, or else the label and the likeliest at some step."""
    if values.shape[1] <= MANY_CLASSES:
        return list(range(values.shape[1]))
    best = values.max(dim=0).values
    if label is not None:
        best[label] = torch.inf
    return sorted(best.topk(12).indices.tolist())


def draw_input(figure: Any, raw: Tensor, title: str) -> Any:
    """Draw x on the left if it is an image, and return the rest of the figure."""
    if raw.ndim != 3:
        return figure
    left, right = figure.subfigures(1, 2, width_ratios=(1, 3.4))
    axis = left.subplots()
    draw_image(axis, raw.cpu())
    axis.set(title=title, xticks=[], yticks=[])
    return right
