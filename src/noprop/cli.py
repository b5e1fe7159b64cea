"""The command line: options to a configuration, a command, and its status. Torch comes late."""

import argparse
import atexit
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from noprop.commands import (
    assemble,
    bench,
    data,
    demo,
    describe,
    evaluate,
    export,
    grid,
    plot,
    predict,
    recipes,
    reproduce,
    train,
)
from noprop.commands.options import Parser
from noprop.errors import ConfigError, NoPropError, RunError
from noprop.terminal import readable_output, show, tell
from noprop.version import __version__

__all__ = ["main"]

OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory")  # torch's words, CPU and CUDA
# In the order of ``noprop --help``.
COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(train, recipes, describe, grid, assemble, evaluate, predict, export, plot, demo),
        *(bench, reproduce, data),
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and a status that is not zero."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    with readable_output(), _one_line_errors() as outcome:
        words = _without_nul(argv)
        parser, commands = build_parser(words)
        arguments, unknown = parser.parse_known_args(words)
        if arguments.command is None:
            parser.print_help()
            return 0
        if unknown:
            option = unknown[0].partition("=")[0]
            commands[arguments.command].error(f"unrecognized arguments: {option}")
        _prepare_process()
        outcome.status = COMMANDS[arguments.command].run(arguments)
    return outcome.status


def _complete() -> None:
    """Print the words that complete a command line for the shell, and exit.

    Without argcomplete nothing is printed, and the command runs.
    """
    with suppress(ImportError):
        import argcomplete

        # A command has its options only if it is one of the words, see build_parser.
        parser, _ = build_parser(os.environ.get("COMP_LINE", "").split())
        argcomplete.autocomplete(parser)


class _Version(argparse.Action):
    """Print the version, with those of torch and Python, without importing torch."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = f"torch {version('torch')}"
        except PackageNotFoundError:
            torch = "no torch"
        python = ".".join(map(str, sys.version_info[:3]))
        show(f"noprop {__version__} ({torch}, Python {python})")
        parser.exit()


class _Outcome:
    """The status of a command."""

    status = 0


def _tell_warning(message: Warning | str, *rest: object, **more: object) -> None:
    """Print a warning of the package as one line."""
    tell(f"noprop: warning: {message}")


@contextmanager
def _one_line_errors() -> Iterator[_Outcome]:
    """Report an error that a user can cause as one line, and set the status that says so."""
    outcome = _Outcome()
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _tell_warning
                yield outcome
        finally:
            sys.stdout.flush()  # here, for at the end of Python an error would be a trace
    except NoPropError as error:
        outcome.status = _failed(str(error))
    except BrokenPipeError:
        outcome.status = 141  # as a shell reports SIGPIPE: the reader, such as head, has enough
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        outcome.status = _failed(f"{what}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
            raise
        outcome.status = _failed(f"not enough memory: {' '.join(str(error).splitlines()[:1])}")
    except UnicodeEncodeError as error:  # a file name, where the locale has ASCII alone
        outcome.status = _failed(f"{error.object}: cannot be written in {error.encoding}")
    except KeyboardInterrupt:
        with suppress(OSError):
            tell("noprop: stopped")
        outcome.status = 130


def _without_nul(argv: Sequence[str] | None) -> Sequence[str]:
    """Return the arguments; no path can have a NUL, and each use of one would fail differently."""
    arguments = sys.argv[1:] if argv is None else argv
    for argument in arguments:
        if "\0" in argument:
            raise ConfigError(f"an argument has a NUL character in it: {argument[:100]!r}")
    return arguments


def _prepare_process() -> None:
    """Check the current folder, silence what libraries would print, and shorten the exit."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RunError("the current folder does not exist any more; change to another") from None
    # Torch imports it too, but ignores a Ctrl-C meanwhile; every later use of numpy then fails.
    import numpy  # noqa: F401

    # Python searches all objects for garbage as it exits: with torch's, four tenths of a second.
    atexit.register(gc.freeze)
    # What makes an image unreadable is an error; Pillow's other notes are not printed.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if "RANK" in os.environ:  # or each process of torchrun shows a stack when another ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _failed(message: str) -> int:
    with suppress(OSError):
        tell(f"noprop: error: {message}")
    return 1


def build_parser(words: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and those of the commands by name.

    Args:
        words: The command line. Only a command that is one of its words has its options.
    """
    parser = Parser(
        prog="noprop",
        usage="noprop COMMAND [options]",
        description="Train neural networks block by block, without back-propagating through them.",
        epilog="noprop COMMAND --help describes a command.\n"
        "To start: noprop train, then noprop plot runs/digits-dt",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parsers = parser.add_subparsers(
        dest="command", title="commands", metavar="COMMAND", prog="noprop"
    )
    made: dict[str, Parser] = {}
    for name, command in COMMANDS.items():
        text = command.HELP
        made[name] = parsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        made[name].add_argument("--json", action="store_true", help="print results as JSON")
        if name in words:
            command.add_options(made[name])
    return parser, made
