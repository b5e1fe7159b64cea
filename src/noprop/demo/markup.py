"""Answers as HTML: bars of numbers, small images, and pictures of matplotlib.

Names of classes come from a file, and may be a stranger's: :func:`text` escapes them.
"""

import base64
import html
import io
from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from noprop.demo.answers import Answer
from noprop.model import Model
from noprop.report.animation import Frame
from noprop.report.chain import draw_panel, likeliest, panels_of
from noprop.report.pictures import draw, short
from noprop.terminal import printable

__all__ = [
    "answer_markup",
    "data_uri",
    "level_markup",
    "pictures_markup",
    "posterior_markup",
    "shown_classes",
    "text",
]

PANEL = (5.2, 3.4)  # inches: readable on a telephone, and two of them next to each other elsewhere
LONGEST_NAME = 24
# Also what templates of gradio and of JavaScript give a meaning.
ESCAPED = {ord(c): f"&#{ord(c)};" for c in "${}`\\"}


def text(value: object) -> str:
    """Return text for HTML, in one line, in which nothing has a meaning."""
    return html.escape(printable(value)).translate(ESCAPED)


def shown_classes(answer: Answer) -> list[int]:
    """Return the classes that get a bar: all, or the likeliest at some step or end of a chain."""
    values = [frame.probabilities for frame in answer.levels]
    return likeliest(
        torch.stack([*values, *answer.ends, answer.probabilities]), answer.question.label
    )


def data_uri(image: Shaped[Tensor, "c h w"]) -> str:
    """Return an image as a ``data:`` address; one that is not uint8 is stretched to its range."""
    from PIL import Image

    if image.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = (255 * (image - low) / (high - low).clamp_min(1e-9)).to(torch.uint8)
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def answer_markup(model: Model, answer: Answer) -> str:
    """Return the likeliest class, its probability, and the input as the model reads it."""
    question, names = answer.question, model.class_names
    best = int(answer.probabilities.argmax())
    image = ""
    if question.picture is not None:
        image = f'<img class="np-input" alt="the input" src="{data_uri(question.picture)}">'
    lines = [f"{text(question.name)}; {answer.average}"]
    if question.label is not None:
        verdict = "right" if question.label == best else "wrong"
        true = text(short_name(names[question.label]))
        lines[0] = (
            f'{text(question.name)}: true class {true}, <b class="np-{verdict}">{verdict}</b>'
        )
        lines.append(answer.average)
    under = "".join(f"<div>{line}</div>" for line in lines)
    return (
        f'<div class="np-answer">{image}<div><div class="np-class">{text(short_name(names[best]))}'
        f"</div><div>{percent(answer.probabilities[best])}</div></div>"
        f'<div class="np-note">{under}</div></div>'
    )


def level_markup(model: Model, answer: Answer, level: int) -> str:
    """Return the bars of one level: cosine of the latent to each class, and the probabilities."""
    if not answer.levels:
        name = model.config.method.name
        return (
            f'<div class="np-note">The method {name} answers in one step: it has no latents.</div>'
        )
    frame = answer.levels[level]
    columns = (
        ["probability"] if frame.cosine is None else ["latent, cosine to class", "probability"]
    )
    rows = [
        (i, [v[i].item() for v in (frame.cosine, frame.probabilities) if v is not None])
        for i in shown_classes(answer)
    ]
    signed = [True, False] if frame.cosine is not None else [False]
    head = f'<div class="np-time">{text(frame.text)}{_step_note(model, answer, frame)}</div>'
    return head + _bars(model, answer, columns, rows, signed)


def _step_note(model: Model, answer: Answer, frame: Frame) -> str:
    if frame is answer.levels[0] and not frame.probabilities.any():
        return ": noise" if frame.cosine is not None else ": before the first layer"
    if not frame.probabilities.any():
        return ": this method guesses at the end only"
    if len(answer.ends) > 1 and answer.prediction.path is not None:
        return f": the first chain, and the mean guess of {len(answer.ends)} chains"
    return ""


def posterior_markup(model: Model, answer: Answer) -> str:
    """Return how many chains end with each class, next to the probabilities of the prediction."""
    chains = len(answer.ends)
    if chains == 1:
        return '<div class="np-note">One chain: a posterior needs more, with noise.</div>'
    votes = answer.votes
    best = int(votes.argmax())
    found = text(short_name(model.class_names[best]))
    head = f'<div class="np-time">{int(votes[best])} of {chains} chains answer {found}</div>'
    rows = [
        (i, [votes[i].item() / chains, answer.probabilities[i].item()])
        for i in shown_classes(answer)
    ]
    columns = ["answers of the chains", answer.average]
    return head + _bars(model, answer, columns, rows, [False, False])


def pictures_markup(model: Model, answer: Answer) -> str:
    """Return the pictures of all levels, as ``noprop plot`` draws them."""
    if not answer.levels:
        return ""
    shown = shown_classes(answer)
    names = [short(model.class_names[i]) for i in shown]
    pictures, chains = [], len(answer.ends)
    for n, panel in enumerate(panels_of(model, answer.prediction)):

        def drawing(figure, panel=panel) -> None:
            figure.set_size_inches(*PANEL)
            axis = figure.subplots()
            figure.colorbar(draw_panel(axis, panel, shown), ax=axis)
            axis.set_yticks(range(len(shown)), names)
            if panel.title.startswith("class") and chains > 1:
                axis.set_title(f"{panel.title}, mean of {chains} chains")

        picture = draw(f"panel-{n}", drawing)
        if picture.png:
            address = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
            pictures.append(f'<img class="np-picture" alt="{text(panel.title)}" src="{address}">')
    return f'<div class="np-pictures">{"".join(pictures)}</div>'


def percent(share: float | Tensor) -> str:
    """Return a share in percent, which is rounded to 0 or 100 only if it is."""
    value = 100 * float(share)
    if 0 < value < 0.1:
        return "<0.1 %".replace("<", "&lt;")
    return "&gt;99.9 %" if 99.9 < value < 100 else f"{value:.1f} %"


def short_name(name: str) -> str:
    """Return a name of bounded length."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _bars(
    model: Model,
    answer: Answer,
    columns: Sequence[str],
    rows: Sequence[tuple[int, Sequence[float]]],
    signed: Sequence[bool],
) -> str:
    """Return a table of bars: a row for each class, a column for each kind of number.

    A signed number is a bar from the middle, -1 to 1, and another a share from 0 to 1.
    """
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    body = []
    for i, values in rows:
        own = ' class="np-own"' if i == answer.question.label else ""
        cells = "".join(_cell(value, middle) for value, middle in zip(values, signed, strict=True))
        name = text(short_name(model.class_names[i]))
        body.append(f"<tr{own}><td>{name}</td>{cells}</tr>")
    long = any(len(model.class_names[i]) > 5 for i, _ in rows)
    kind = "np-bars np-long" if long else "np-bars"
    return f'<table class="{kind}"><tr><th></th>{head}</tr>{"".join(body)}</table>'


def _cell(value: float, signed: bool) -> str:
    width = min(100.0, 100 * abs(value) / (2 if signed else 1))
    left = (50 if value >= 0 else 50 - width) if signed else 0
    shown = f"{round(value, 2) + 0.0:+.2f}" if signed else percent(value)
    middle = " np-signed" if signed else ""
    return (
        f'<td><div class="np-cell"><div class="np-track{middle}">'
        f'<div class="np-bar" style="left:{left:.1f}%;width:{width:.1f}%"></div></div>'
        f"<span>{shown}</span></div></td>"
    )
