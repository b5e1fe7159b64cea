"""``noprop plot``: write pictures and the page of a run."""

import argparse

from noprop.commands.options import (
    Parser,
    add_data_dir,
    add_trained_run,
    load_run,
    path,
    whole_number,
)
from noprop.terminal import printable, show, show_json, tell

__all__ = ["HELP", "add_options", "run"]

HELP = (
    "Draw a trained run, and write its report: results, confusion, calibration, mistakes, curves."
)


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_trained_run(parser)
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for the pictures and report.html [RUN/plots, and RUN for the report]",
    )
    parser.add_argument(
        "--example",
        type=whole_number,
        metavar="N",
        help="test example that the picture and the animation of a chain follow, counted from 0 "
        "[one whose label is unlikely at the first steps and predicted at the end]",
    )
    parser.add_argument(
        "--animate",
        action="store_true",
        help="also write chain.gif: a label that appears out of noise, step by step",
    )
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.report.animation import animate
    from noprop.report.page import write_page
    from noprop.report.pictures import save_pictures
    from noprop.report.plots import draw_run

    model = load_run(arguments)
    examples = model.examples("test", arguments.data_dir)
    folder, animations = arguments.out or arguments.run / "plots", []
    if arguments.animate:  # first, because a method without steps is an error
        animations.append(animate(model, examples, arguments.example, folder / "chain.gif"))
    pictures = draw_run(arguments.run, model, examples, arguments.example)
    paths = [*save_pictures(pictures, folder), *animations]
    for picture in pictures:
        if picture.trouble:
            tell(f"{picture.name}: cannot be drawn: {picture.trouble}")
    place = (arguments.out or arguments.run) / "report.html"
    page = write_page(arguments.run, model, pictures, place)
    if (
        arguments.json
    ):  # only the pictures and the animation, because the page is always report.html
        show_json([str(p) for p in paths])
    else:
        show("\n".join(map(printable, [*paths, page])))
    return 0
