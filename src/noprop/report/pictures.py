"""A figure drawn once and kept as PNG, for a file, and as SVG, for a page."""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noprop.errors import import_extra
from noprop.files import write_whole

__all__ = [
    "FEW_POINTS",
    "MANY_CLASSES",
    "Draw",
    "Picture",
    "draw",
    "draw_image",
    "marker",
    "save_pictures",
    "short",
    "whole_ticks",
]

SIZE = (9.0, 4.5)  # inches
FEW_POINTS = 40  # a line through more has no markers
MANY_CLASSES = 20  # more names do not fit under one another

Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn, or the reason why there is none.

    Attributes:
        name: Name of the picture, and of its file without the suffix.
        png: The figure as PNG; empty if it could not be drawn.
        svg: The figure as an ``<svg>`` element, with text as paths, and ids of its own.
        trouble: The reason why it could not be drawn, or empty.
    """

    name: str
    png: bytes = b""
    svg: str = ""
    trouble: str = ""


def draw(name: str, drawing: Draw) -> Picture:
    """Draw a picture; it has the same bytes every time, whatever style the user has set.

    Args:
        name: Name of the picture.
        drawing: A function that draws on a figure of matplotlib.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    style, figures = (
        import_extra(f"matplotlib.{name}", "plots", "plots need") for name in ("style", "figure")
    )
    salt = {"svg.hashsalt": name, "svg.fonttype": "path"}
    files = {"png": io.BytesIO(), "svg": io.BytesIO()}
    # A character that the font lacks is drawn as a box; the warning would help nobody.
    with warnings.catch_warnings(action="ignore"), style.context(["default", salt]):
        try:
            figure = figures.Figure(figsize=SIZE, layout="constrained")
            drawing(figure)
            for kind, file in files.items():
                figure.savefig(file, format=kind, dpi=120)
        except Exception as error:  # the other pictures are drawn all the same
            text = " ".join(str(error).split())[:300]
            return Picture(name, trouble=text or type(error).__name__)
    return Picture(name, files["png"].getvalue(), _element(name, files["svg"].getvalue()))


def _element(name: str, content: bytes) -> str:
    """Return an SVG file as an element of a page: ids of its own, no comments, no metadata.

    Those hold the texts of the figure a second time, and the date.
    """
    svg = content.decode()
    svg = re.sub(
        r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = re.sub(r'\bid="', rf'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)


def save_pictures(pictures: list[Picture], out: Path) -> list[Path]:
    """Write the pictures that could be drawn as PNG files, and return their paths.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    drawn = {out / f"{p.name}.png": p.png for p in pictures if p.png}
    for path, content in drawn.items():
        write_whole(path, content)
    return list(drawn)


def whole_ticks(axis: Any) -> None:
    """Label only integers on the x axis: there is no epoch 1.5."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def marker(points: Any) -> str | None:
    """Return the marker of a line through some points; none where they are many."""
    return "." if len(points) <= FEW_POINTS else None


def draw_image(axis: Any, image: Tensor) -> None:
    """Draw an image (C, H, W), of uint8 or stretched to its own range."""
    if image.dtype != torch.uint8:
        low, high = image.min(), image.max()
        image = (image - low) / (high - low).clamp_min(1e-9)
    pixels = image.permute(1, 2, 0).numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray")


def short(name: str, length: int = 16) -> str:
    """Return a class name in one line, in which ``$`` begins no formula of matplotlib."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    name = name if len(name) <= length else name[: length - 1] + "…"
    return name.replace("$", r"\$")
