"""One prediction as an animation: a label that appears out of noise, step by step, as a GIF.

A frame shows the input, the cosine of the latent to the embedding of each class, and the class
probabilities. Frames between two recorded levels are interpolated; the levels are the chain's own.
"""

import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from noprop.data import Examples
from noprop.errors import ConfigError, import_extra
from noprop.files import write_whole
from noprop.methods.base import Prediction
from noprop.model import Model
from noprop.report.chain import (
    choose_example,
    cosines,
    draw_input,
    likeliest,
    one_chain,
    predicts_in_steps,
)
from noprop.report.pictures import short

__all__ = ["Frame", "animate", "frames_of", "levels_of"]

SIZE, DPI = (7.2, 3.4), 100  # inches, and pixels an inch
MOST_FRAMES = 60
MOST_BETWEEN = 4  # frames from one level to the next
LENGTH, LONGEST = 6000, 200  # ms: all frames without the pauses, and one of them at most
START, PAUSE = 800, 3000  # ms of the first frame, and of the answer
COLORS = 128  # of the GIF
OWN, OTHER = "#d9601a", "#4878a8"  # the true class, and the other classes


@dataclass(frozen=True)
class Frame:
    """What one frame shows.

    Attributes:
        text: The time, or the answer.
        cosine: Cosine of the latent to each u_y, shape (m,); None without latents.
        probabilities: Class probabilities, shape (m,); zeros before the first guess.
    """

    text: str
    cosine: Tensor | None
    probabilities: Tensor


def animate(model: Model, examples: Examples, example: int | None, path: Path) -> Path:
    """Write the animation of one prediction as a GIF, and return its path.

    Args:
        model: The trained model.
        examples: The test part.
        example: Index of the example; one that is hard at first unless given.
        path: The file to write or replace.

    Raises:
        ConfigError: If matplotlib is not installed, there is no such example, or the method
            answers in a single step.
        RunError: If the disk is full or the folder cannot be written.
    """
    style, figures, _ = (
        import_extra(name, "plots", "animations need")
        for name in ("matplotlib.style", "matplotlib.figure", "PIL.Image")
    )
    _check_steps(model)
    chosen = choose_example(model, examples, example)
    raw, label = examples.x[chosen], int(examples.y[chosen])
    frames = frames_of(model, raw, label)
    # A character that the font lacks is drawn as a box; the warning would help nobody.
    with warnings.catch_warnings(action="ignore"), style.context("default"):
        figure = figures.Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        title = f"test example {chosen}"
        pixels = list(_draw(figure, model, raw, label, frames, title))
    write_whole(path, _gif(pixels))
    return path


def _gif(frames: Sequence[Any]) -> bytes:
    """Return frames of equal size (H, W, 3) as a GIF that repeats, with a pause on the last one."""
    from PIL import Image

    # All in one, because frames mapped to the palette of another turn white into a light gray.
    whole = Image.fromarray(np.concatenate(frames)).quantize(COLORS)
    height, width = frames[0].shape[:2]
    images = [whole.crop((0, i * height, width, (i + 1) * height)) for i in range(len(frames))]
    usual = min(LONGEST, LENGTH // len(images)) // 10 * 10  # a GIF counts in 10 ms
    durations = [START, *[usual] * (len(images) - 2), PAUSE]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return file.getvalue()


def _check_steps(model: Model) -> None:
    """Check that there is something to animate.

    Raises:
        ConfigError: If the method answers in a single step, without latents.
    """
    if not predicts_in_steps(model):
        raise ConfigError(
            "--animate: wanted a method that predicts in steps, such as dt, got "
            f"{model.config.method.name}, which answers once"
        )


def frames_of(model: Model, raw: Tensor, label: int) -> list[Frame]:
    """Return the frames of one prediction, at most :data:`MOST_FRAMES`; the last has the answer.

    Args:
        model: The trained model.
        raw: The input, without the axis of a batch.
        label: Its true class.
    """
    p = one_chain(model, raw[None])
    levels, answer = levels_of(model, p), p.single[0].float().cpu()
    between = max(1, min(MOST_BETWEEN, (MOST_FRAMES - 2) // (len(levels) - 1)))
    frames = levels[:1]
    for before, after in itertools.pairwise(levels):
        for part in range(1, between + 1):
            frames.append(_between(before, after, part / between))
    last = frames[-1].cosine
    return [*frames, Frame(_answer(answer, label, model.task.class_names), last, answer)]


def levels_of(model: Model, p: Prediction) -> list[Frame]:
    """Return a frame for each recorded level of a prediction of one example.

    The latents are those of the first chain, and the guesses are averages over the chains.
    """
    end = p.times[-1].item()
    near = None if model.config.method.stack else cosines(model, p)[:, 0]
    guesses = _guesses(model, p.times, p.path if near is not None else p.latents[1:])
    return [
        Frame(_time(t, end), None if near is None else near[i], guesses[i])
        for i, t in enumerate(p.times.tolist())
    ]


def _between(before: Frame, after: Frame, share: float) -> Frame:
    """Return a frame that moves to ``after``, and has its time."""
    cosine = None
    if before.cosine is not None and after.cosine is not None:
        cosine = torch.lerp(before.cosine, after.cosine, share)
    p = torch.lerp(before.probabilities, after.probabilities, share)
    return Frame(after.text, cosine, p)


def _guesses(
    model: Model, times: Float[Tensor, " levels"], path: Float[Tensor, "stretches one dim"] | None
) -> Float[Tensor, "levels classes"]:
    """Return the class probabilities of the step that led to each level; zeros without a guess.

    The guesses of a long chain are means over stretches of steps, as in :meth:`Chains.guess`.
    """
    found = torch.zeros(len(times), len(model.task.class_names))
    if path is not None:
        steps = model.method.num_steps
        ends = (times / times[-1] * steps).round().long()
        found[1:] = path[:, 0].float().cpu()[(ends[1:] - 1) * len(path) // steps]
    return found


def _time(t: float, end: float) -> str:
    """Return the time of a level, in steps or between 0 and 1."""
    return f"t = {t:.0f} of {end:.0f}" if end > 1 else f"t = {t:.2f}"


def _answer(p: Float[Tensor, " classes"], label: int, names: Sequence[str]) -> str:
    """Return the prediction in words, and whether it is the true class."""
    found = int(p.argmax())
    verdict = "right" if found == label else f"the true class is {short(names[label])}"
    return f"answer: {short(names[found])} ({100 * float(p[found]):.0f} %), {verdict}"


def _draw(
    figure: Any, model: Model, raw: Tensor, label: int, frames: Sequence[Frame], title: str
) -> Iterator[Any]:
    """Draw one frame after the other, and yield the pixels of each, shape (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names, canvas = model.task.class_names, FigureCanvasAgg(figure)
    right = draw_input(figure, raw, f"{title}\ntrue class: {short(names[label], 12)}")
    shown = _shown(frames, label)
    heading = figure.suptitle(frames[-1].text)  # the longest, for the layout
    bars = _bars(right, frames, [short(names[i]) for i in shown], shown.index(label))
    canvas.draw()
    figure.set_layout_engine(None)
    heading.set_text("")
    canvas.draw()
    empty = canvas.copy_from_bbox(figure.bbox)
    for frame in frames:  # only the heading and the bars: the rest takes twenty times as long
        canvas.restore_region(empty)
        heading.set_text(frame.text)
        figure.draw_artist(heading)
        values = [v[shown] for v in (frame.cosine, frame.probabilities) if v is not None]
        for bar, width in zip(bars, torch.cat(values).tolist(), strict=True):
            bar.set_width(width)
            bar.axes.draw_artist(bar)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shown(frames: Sequence[Frame], label: int) -> list[int]:
    """Return the classes with a bar: all, or the label and the likeliest of the frames."""
    values = [frame.probabilities for frame in frames]
    if not _has_guesses(frames):
        values += [frame.cosine for frame in frames if frame.cosine is not None]
    return likeliest(torch.stack(values), label)


def _has_guesses(frames: Sequence[Frame]) -> bool:
    """Whether there are probabilities before the answer."""
    return any(bool(frame.probabilities.any()) for frame in frames[:-1])


def _bars(figure: Any, frames: Sequence[Frame], names: Sequence[str], own: int) -> list[Any]:
    """Draw the panels with empty bars, and return these: cosines first, then probabilities."""
    guesses = "class probabilities" + " (at the end only)" * (not _has_guesses(frames))
    panels = [(guesses, 0)]
    if frames[0].cosine is not None:
        panels.insert(0, ("cosine of the latent to $u_y$", -1))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    bars = []
    for axis, (name, low) in zip(axes, panels, strict=True):
        bars += axis.barh(range(len(names)), [0.0] * len(names), color=OTHER)
        bars[own - len(names)].set_facecolor(OWN)
        axis.set(xlim=(low, 1), ylim=(len(names) - 0.5, -0.5))
        axis.set_title(name, fontsize=10)
        axis.axvline(0, color="black", lw=0.8)
        axis.tick_params(labelleft=axis is axes[0])
    axes[0].set_yticks(range(len(names)), names)
    axes[0].get_yticklabels()[own].set_fontweight("bold")
    return bars
