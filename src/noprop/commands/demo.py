"""``noprop demo``: a page in which a trained model answers drawings, images and examples."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from noprop.commands.options import Parser, add_data_dir, add_trained_run, load_run, whole_number
from noprop.errors import DataError
from noprop.terminal import printable, show, show_json, tell

if TYPE_CHECKING:
    from noprop.data import Examples
    from noprop.model import Model

__all__ = ["HELP", "add_options", "run"]

HELP = "Open a page: draw a digit, watch the chain step by step, and see the posterior of K chains."
NOTE = """\
An image is resized as by noprop predict. Where the data are mnist or digits, a drawing is made as
MNIST was: light on black, scaled into 20x20 of 28x28 pixels, the centre of mass in the middle.
"""


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.epilog = NOTE
    add_trained_run(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="address at which the page is served; 0.0.0.0 for any machine that reaches this one "
        "[127.0.0.1, this machine alone]",
    )
    parser.add_argument(
        "--port",
        type=whole_number,
        default=7860,
        metavar="N",
        help="port; 0 for any free one [7860]",
    )
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether to open the page in a browser [on a desktop, from a terminal]",
    )
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command until Ctrl-C."""
    from noprop.demo.page import build_page
    from noprop.demo.server import address_of, listen, serve

    model = load_run(arguments)
    with listen(arguments.host, arguments.port) as listening:
        page, options = build_page(model, _examples(model, arguments.data_dir))
        address = address_of(listening)
        if arguments.json:
            show_json({"address": address})
        else:
            show(f"{printable(arguments.run)} is at {address} (Ctrl-C stops it)")
        sys.stdout.flush()
        if _wants_browser() if arguments.open is None else arguments.open:
            import webbrowser

            webbrowser.open(address)
        serve(page, options, listening)
    return 0


def _examples(model: "Model", data_dir: Path | None) -> "Examples | None":
    """Return the test part; None, and a line that says why, if it cannot be read."""
    try:
        return model.examples("test", data_dir)
    except DataError as error:
        tell(f"noprop: the page has no examples: {error}")
        return None


def _wants_browser() -> bool:
    """Return whether a browser would open in a window."""
    windows = sys.platform in ("darwin", "win32") or os.environ.keys() & {
        "DISPLAY",
        "WAYLAND_DISPLAY",
    }
    return bool(windows) and sys.stdout.isatty()
