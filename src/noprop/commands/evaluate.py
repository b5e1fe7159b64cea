"""``noprop evaluate``: measure a trained run on a part of its data."""

import argparse
from contextlib import closing

from noprop.commands.options import (
    Parser,
    add_data_dir,
    add_quiet,
    add_trained_run,
    load_run,
)
from noprop.terminal import show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Measure a trained run on a split of its data, in every way of predicting."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_trained_run(parser)
    parts = ("test", "validation", "train")
    parser.add_argument("--part", choices=parts, default="test", help="split of the data [test]")
    add_data_dir(parser)
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.report.progress import Report
    from noprop.report.tables import evaluation_text

    model = load_run(arguments)
    with closing(Report(quiet=arguments.quiet)) as report:
        results = model.evaluate(arguments.data_dir, arguments.part, emit=report)
    show_json(results) if arguments.json else show(evaluation_text(results))
    return 0
