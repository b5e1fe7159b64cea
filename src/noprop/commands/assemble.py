"""``noprop assemble``: the model of a run whose units are trained."""

import argparse

from noprop.commands.options import (
    Parser,
    add_data_dir,
    add_encoder,
    add_quiet,
    add_run,
    named_encoder,
)
from noprop.commands.train import show_result
from noprop.config import parse_value

__all__ = ["HELP", "add_options", "run"]

HELP = "Assemble a run's model from its trained units, and evaluate it."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_run(parser)
    add_quiet(parser)
    add_data_dir(parser)
    add_encoder(parser)
    parser.add_argument(
        "--evaluation", metavar="BUDGET", help="evaluation.budget, such as full [as in the run]"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop import api
    from noprop.report.progress import Report

    budget = arguments.evaluation
    api.assemble(
        arguments.run,
        data_dir=arguments.data_dir,
        encoder=named_encoder(arguments.encoder),
        evaluation=budget if budget is None else parse_value("evaluation.budget", budget),
        emit=Report(quiet=arguments.quiet),
    )
    return show_result(arguments, arguments.run)
