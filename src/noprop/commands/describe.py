"""``noprop describe``: units, parameters, memory and schedule of a recipe."""

import argparse

from noprop.commands.options import Parser, configuration
from noprop.commands.train import add_recipe
from noprop.config import RunConfig
from noprop.terminal import show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Show units, parameters, memory and schedule of a recipe."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.report.describe import describe
    from noprop.report.tables import description_text

    config = configuration(arguments)
    about = describe(config, *_shape(config))
    show_json(about) if arguments.json else show(description_text(about))
    return 0


def _shape(config: RunConfig) -> tuple[tuple[int, ...], int]:
    from noprop.data import SOURCES, inspect_sources, load_dataset

    name = config.data.dataset
    if name in SOURCES:
        for status in inspect_sources():
            if status.name == name:
                return tuple(status.shape), status.num_classes
    if name == "digits":
        return (1, 8, 8), 10
    c = config.data
    dataset = load_dataset(name, image_size=c.image_size, color=c.color)
    return dataset.shape, dataset.num_classes
