"""``noprop grid``: train recipes with lists of values and several seeds, and compare them."""

import argparse
import re
from contextlib import closing
from pathlib import Path
from typing import Any

from noprop.commands.engine import add_engine, engine_of
from noprop.commands.options import (
    DEFAULT_RECIPE,
    Parser,
    add_data_dir,
    add_encoder,
    add_fields,
    add_quiet,
    add_set,
    assignments,
    encoder_or_field,
    parse_seeds,
    path,
)
from noprop.config import fields_of, parse_value
from noprop.terminal import printable, show, show_json, tell

__all__ = ["HELP", "add_options", "run"]

HELP = (
    "Train recipes with several seeds, each in its run folder, and compare them. Any field takes a "
    "list of values, such as --lr 1e-3,3e-4: all combinations are trained."
)


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "recipes",
        nargs="*",
        default=[DEFAULT_RECIPE],
        metavar="RECIPE",
        help=f"recipes; noprop recipes lists them [{DEFAULT_RECIPE}]",
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
    parser.add_argument(
        "--methods", dest="method.name", metavar="LIST", help="same as --method, such as dt,ct"
    )
    add_quiet(parser)
    add_set(parser, "set any field, for all recipes that have it; a list of values, too")
    add_engine(parser, waits=True)
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
    changes, lists = values_of(arguments)
    report = Report(quiet=arguments.quiet)
    try:
        with answered_between_updates(), closing(report):
            runs = train_grid(
                arguments.recipes,
                parse_seeds(arguments.seeds),
                folder=arguments.out,
                overrides=changes,
                lists=lists,
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


def values_of(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the fields with one value, and those with a list of values.

    A comma in double quotes is a part of a value.
    """
    texts = dict(pair.partition("=")[::2] for pair in arguments.set)
    assignments(arguments)  # checks --set
    for name, *_ in fields_of():
        if (text := getattr(arguments, name, None)) is not None:
            texts[name] = text
    single, lists = dict[str, Any](), dict[str, list[Any]]()
    for name, text in texts.items():
        parts = re.findall(r'(?:[^,"]|"[^"]*"?)+', text) or [text]
        values = [parse_value(name, part.strip()) for part in parts]
        if len(values) > 1:
            lists[name] = list({repr(value): value for value in values}.values())
        else:
            single[name] = values[0]
    return single, lists


def _grid_run(run: Any) -> dict[str, Any]:
    from noprop.report.tables import is_stack

    about = {"run": str(run.folder), "recipe": run.recipe, "seed": run.seed}
    if run.skipped:
        about["not_applied"] = list(run.skipped)
    if run.error:
        return {**about, "error": str(run.error)}
    assert run.results
    modes = run.results["modes"]
    has_chain = "single" in modes and not is_stack(run.results)
    single = modes["single"]["accuracy"] if has_chain else None
    best = modes[run.results["default"]]
    about |= {"accuracy": best["accuracy"], "single": single, "log_loss": best.get("log_loss")}
    cost = {k: v for k, v in run.results.get("training", {}).items() if k != "memory_counter"}
    return {**about, "parameters": run.results.get("parameters"), **cost}
