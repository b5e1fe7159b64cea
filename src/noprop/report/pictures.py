"""A figure drawn once and kept both as PNG, for a file, and as SVG, for a page.

What cannot be drawn is a picture too: one that says why.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.errors import ConfigError
from noprop.files import write_whole

__all__ = ["Draw", "Picture", "draw", "save_pictures"]

SIZE = (9.0, 4.5)  # inches

Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Picture:
    """A figure drawn, or the reason why there is none.

    Attributes:
        name: of the picture, and of its file without the suffix.
        png: the figure as PNG; empty where it could not be drawn.
        svg: the same as one ``<svg>`` element, its text as paths, its ids unlike other pictures'.
        trouble: why it could not be drawn, else empty.
    """

    name: str
    png: bytes = b""
    svg: str = ""
    trouble: str = ""


def draw(name: str, drawing: Draw) -> Picture:
    """Draw one picture: the same bytes every time, whatever style the user has set.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'noprop[plots]'") from None
    salt = {"svg.hashsalt": name, "svg.fonttype": "path"}
    files = {"png": io.BytesIO(), "svg": io.BytesIO()}
    # A letter that the font lacks is drawn as a box; the warning would help nobody.
    with warnings.catch_warnings(action="ignore"), style.context(["default", salt]):
        try:
            figure = Figure(figsize=SIZE, layout="constrained")
            drawing(figure)
            for kind, file in files.items():
                figure.savefig(file, format=kind, dpi=120)
        except Exception as error:  # a picture less is no reason to lose the others
            text = " ".join(str(error).split())[:300]
            return Picture(name, trouble=text or type(error).__name__)
    return Picture(name, files["png"].getvalue(), _element(name, files["svg"].getvalue()))


def _element(name: str, content: bytes) -> str:
    """An SVG file as an element of a page: ids of its own, without comments and metadata.

    Those would hold the texts of the figure once more, and the date.
    """
    svg = content.decode()
    svg = re.sub(
        r"<!--.*?-->\n?|<metadata>.*?</metadata>\n?", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = re.sub(r'\bid="', rf'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)


def save_pictures(pictures: list[Picture], out: Path) -> list[Path]:
    """Write those that could be drawn as PNG files, and return their paths.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    drawn = {out / f"{p.name}.png": p.png for p in pictures if p.png}
    for path, content in drawn.items():
        write_whole(path, content)
    return list(drawn)
