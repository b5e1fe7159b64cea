"""``noprop describe``: units, parameters, memory, time and schedule of a recipe or a run."""

import argparse
from pathlib import Path
from typing import Any

from noprop.commands.options import (
    Parser,
    add_encoder,
    configuration,
    encoder_or_field,
    overrides,
)
from noprop.commands.train import add_recipe
from noprop.config import RunConfig, replace
from noprop.recipes import named_after_data
from noprop.terminal import show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Show units, parameters, memory, estimated time and schedule of a recipe or a run."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_recipe(parser, "or a run folder")
    add_encoder(parser, fields=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.report.describe import describe
    from noprop.report.tables import description_text

    encoder = encoder_or_field(arguments)
    config = _configuration(arguments, encoder)
    config = config if encoder is None else replace(config, {"method.encoder": "custom"})
    shape, classes, examples = _data(config)
    config = named_after_data(config)
    about = describe(config, shape, classes, examples=examples, encoder=encoder)
    show_json(about) if arguments.json else show(description_text(about))
    return 0


def _configuration(arguments: argparse.Namespace, encoder: Any) -> RunConfig:
    """Return the configuration of a recipe, a file or a run folder, changed by options."""
    folder = Path(arguments.recipe or "")
    is_run = (folder / "config.toml").is_file() or len(folder.parts) > 1  # no recipe has a folder
    if not arguments.recipe or not is_run:
        return configuration(arguments)
    from noprop.encoder_file import check_encoder
    from noprop.model import open_run

    arguments.recipe = None  # it is the name of a field, too
    config = replace(open_run(folder), overrides(arguments))
    if config.method.has_own_code:
        check_encoder(folder, encoder)
    return config


def _data(config: RunConfig) -> tuple[tuple[int, ...], int, int]:
    """Return the shape of an input, the number of classes and that of training examples."""
    from noprop.data import SOURCES, inspect_sources, load_dataset

    c = config.data
    if c.dataset in SOURCES or c.dataset == "digits":
        (status,) = (s for s in inspect_sources() if s.name == c.dataset)
        shape, classes, count = tuple(status.shape), status.num_classes, status.sizes[0]
    else:
        how = {"image_size": c.image_size, "color": c.color, "label": c.label}
        dataset = load_dataset(c.dataset, **how)
        shape, classes, count = dataset.shape, dataset.num_classes, len(dataset.train)
    count = round(count * (1 - c.validation))
    return shape, classes, min(count, c.train_size or count)
