"""The command line: options to a configuration, a command, and its status. Torch comes late."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from noprop.config import RunConfig, fields_of, from_toml, parse_value, replace
from noprop.errors import ConfigError, NoPropError, RunError
from noprop.parser import DEFAULT_RECIPE, build_parser
from noprop.recipes import find_recipe
from noprop.terminal import readable_output, tell

__all__ = ["main"]

OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory")  # torch's words, CPU and CUDA


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
    with readable_output():
        try:
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()  # here, for at the end of Python an error would be a trace
        except NoPropError as error:
            return _failed(str(error))
        except BrokenPipeError:
            return 141  # as a shell reports SIGPIPE: the reader, such as head, has enough
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            return _failed(f"{what}{error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
                raise
            return _failed(f"not enough memory: {' '.join(str(error).splitlines()[:1])}")
        except UnicodeEncodeError as error:  # a file name, where the locale has ASCII alone
            return _failed(f"{error.object}: cannot be written in {error.encoding}")
        except KeyboardInterrupt:
            with suppress(OSError):
                tell("noprop: stopped")
            return 130


def _run(argv: Sequence[str] | None) -> int:
    for argument in sys.argv[1:] if argv is None else argv:
        if "\0" in argument:  # no path can, and each use of one would fail in its own way
            raise ConfigError(f"an argument has a NUL character in it: {argument[:100]!r}")
    parser, made = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    if unknown:
        made[arguments.command].error(f"unrecognized arguments: {unknown[0].partition('=')[0]}")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RunError("the current folder does not exist any more; change to another") from None
    # What makes an image unreadable is an error; what else Pillow notes is no line of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if "RANK" in os.environ:  # or each process of torchrun shows a stack when another ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments.configuration = lambda: configuration(arguments)
    arguments.changes = lambda: assignments(arguments)
    arguments.overrides = lambda: overrides(arguments)
    from noprop import commands

    return getattr(commands, arguments.command)(arguments)


def _failed(message: str) -> int:
    with suppress(OSError):
        tell(f"noprop: error: {message}")
    return 1
