"""``noprop evaluate``: measure a trained run on a part of its data."""

import argparse

from noprop.commands.options import Parser, add_data_dir, add_trained_run, load_run
from noprop.terminal import show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Measure a trained run on a part of its data."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_trained_run(parser)
    parts = ("test", "validation", "train")
    parser.add_argument("--part", choices=parts, default="test", help="part of the data [test]")
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.report.tables import evaluation_text

    results = load_run(arguments).evaluate(arguments.data_dir, arguments.part)
    show_json(results) if arguments.json else show(evaluation_text(results))
    return 0
