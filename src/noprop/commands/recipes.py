"""``noprop recipes``: the recipes, by words of their names."""

import argparse
from typing import Any

from noprop.commands.options import Parser
from noprop.config import RunConfig
from noprop.errors import ConfigError
from noprop.recipes import RECIPES
from noprop.terminal import show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "List the recipes, or those whose names have some words."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="parts of a name, such as mnist, dt, d20 or best; a recipe must have all",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.report.tables import table

    chosen = {
        name: config
        for name, config in RECIPES.items()
        if all(_has(config, word) for word in arguments.words)
    }
    if not chosen:
        raise ConfigError(
            f"recipes: none has {' and '.join(map(repr, arguments.words))} in its name; noprop "
            "recipes lists all"
        )
    rows = {name: _row(config) for name, config in chosen.items()}
    if arguments.json:
        show_json(rows)
        return 0
    head = ["recipe", *next(iter(rows.values()))]
    show(table(head, [[name, *map(str, row.values())] for name, row in rows.items()]))
    return 0


def _has(config: RunConfig, word: str) -> bool:
    """Return whether a recipe has a word: its data set or a part of it, or a part of the rest.

    A word that is a data set means that one alone: ``mnist`` is not Fashion-MNIST.
    """
    word, dataset = word.lower(), config.data.dataset
    is_named = word in {other.data.dataset for other in RECIPES.values()}
    of_the_data = word == dataset if is_named else word in dataset
    kind = config.recipe.removeprefix(dataset)
    return of_the_data or word == config.recipe or f"-{word}-" in f"{kind}-"


def _row(config: RunConfig) -> dict[str, Any]:
    c = config.method
    steps: int | str = c.chain_length
    if c.name == "greedy" and c.auto_fields:  # an answer for each layer, which the data decide
        steps = "auto"
    return {
        "data": config.data.dataset,
        "method": c.name,
        "embedding": c.embedding + (" (learned)" if c.learned else ""),
        "T": steps,
        "epochs": config.train.epochs,
        "lr": config.train.lr,
    }
