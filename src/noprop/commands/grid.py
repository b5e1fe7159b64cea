"""``noprop grid``: train recipes with several seeds, and compare them."""

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from noprop.commands.engine import add_engine, engine_of
from noprop.commands.options import (
    Parser,
    add_data_dir,
    add_encoder,
    add_fields,
    add_quiet,
    add_set,
    encoder_or_field,
    overrides,
    parse_seeds,
    path,
)
from noprop.errors import ConfigError
from noprop.terminal import printable, show, show_json, tell

__all__ = ["HELP", "add_options", "run"]

HELP = "Train recipes with several seeds, each in its run folder, and compare them."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE", help="recipes; noprop recipes lists them"
    )
    parser.add_argument(
        "--seeds", default="0..4", metavar="LIST", help="seeds, such as 0..4 or 0,3,7 [0..4]"
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs"),
        metavar="DIR",
        help="folder for the run folders RECIPE-seed-N; finished runs are not trained again [runs]",
    )
    add_quiet(parser)
    add_set(parser, "set any field, for all recipes")
    add_engine(parser)
    add_fields(parser)
    add_data_dir(parser)
    add_encoder(parser, fields=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.grid import summary, train_grid
    from noprop.report.progress import Report
    from noprop.report.tables import grid_text
    from noprop.training.signals import Terminated, answered_between_updates

    encoder, engine = encoder_or_field(arguments), engine_of(arguments)
    if arguments.no_wait:
        raise ConfigError("--no-wait: a grid evaluates its runs, so it waits for them")
    changes = overrides(arguments)
    report = Report(quiet=arguments.quiet)
    try:
        with answered_between_updates(), closing(report):
            runs = train_grid(
                arguments.recipes,
                parse_seeds(arguments.seeds),
                folder=arguments.out,
                overrides=changes,
                data_dir=arguments.data_dir,
                encoder=encoder,
                engine=engine,
                emit=report,
            )
    except KeyboardInterrupt as stop:
        tell("stopped; resume with the same command")
        return 143 if isinstance(stop, Terminated) else 130
    failed = [run for run in runs if run.error]
    table = summary(runs)
    if arguments.json:
        show_json({"recipes": table, "runs": [_grid_run(run) for run in runs]})
    else:
        show(grid_text(table))
        show(f"\nthe runs are in {printable(arguments.out)}")
    for run in failed:
        tell(f"noprop: error: {run.name}: {run.error}")
    return 1 if failed else 0


def _grid_run(run: Any) -> dict[str, Any]:
    about = {"run": str(run.folder), "recipe": run.recipe, "seed": run.seed}
    if run.error:
        return {**about, "error": str(run.error)}
    assert run.results
    modes = run.results["modes"]
    single = modes["single"]["accuracy"] if "single" in modes else None
    return {**about, "accuracy": modes[run.results["default"]]["accuracy"], "single": single}
