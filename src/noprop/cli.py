"""The command line: options to a configuration, a command, and its status. Torch comes late."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from noprop.config import RunConfig, fields_of, from_toml, parse_value, replace
from noprop.errors import ConfigError, NoPropError
from noprop.parser import DEFAULT_RECIPE, build_parser
from noprop.recipes import find_recipe

__all__ = ["main"]


def configuration(arguments: argparse.Namespace) -> RunConfig:
    """Recipe, then file, then ``--set``, then options; the later wins."""
    if arguments.config and arguments.recipe:
        raise ConfigError("give a recipe or --config FILE, not both")
    config = from_toml(arguments.config) if arguments.config else None
    config = config or find_recipe(arguments.recipe or DEFAULT_RECIPE)
    return replace(config, overrides(arguments))


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that ``--set`` and options give; the options win."""
    changes = assignments(arguments)
    for name, *_ in fields_of():
        text = getattr(arguments, name, None)
        if text is not None:
            changes[name] = parse_value(name, text)
    return changes


def assignments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that ``--set`` gives."""
    changes: dict[str, Any] = {}
    for pair in arguments.set:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set wants FIELD=VALUE, got {pair!r}")
        changes[name] = parse_value(name, text)
    return changes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and a status that is not zero."""
    parser, made = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    if unknown:
        made[arguments.command].error(f"unrecognized arguments: {unknown[0].partition('=')[0]}")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # an image that matters is an error
    if "RANK" in os.environ:  # or each process of torchrun shows a stack when another ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        arguments.configuration = lambda: configuration(arguments)
        arguments.changes = lambda: assignments(arguments)
        arguments.overrides = lambda: overrides(arguments)
        from noprop import commands

        return getattr(commands, arguments.command)(arguments)
    except NoPropError as error:
        print(f"noprop: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        print(f"noprop: error: {what}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("noprop: stopped", file=sys.stderr)
        return 130
