"""The parser and the options that several commands share, without importing torch."""

import argparse
import difflib
import importlib
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin

from noprop.config import RunConfig, fields_of, from_toml, parse_value, replace
from noprop.errors import ConfigError
from noprop.recipes import find_recipe
from noprop.terminal import printable

if TYPE_CHECKING:
    from noprop.model import Model

__all__ = [
    "DEFAULT_RECIPE",
    "Parser",
    "add_data_dir",
    "add_encoder",
    "add_fields",
    "add_quiet",
    "add_run",
    "add_set",
    "add_trained_run",
    "assignments",
    "complete_with",
    "configuration",
    "encoder_or_field",
    "load_run",
    "named_encoder",
    "option_names",
    "overrides",
    "parse_duration",
    "parse_seeds",
    "path",
    "whole_number",
]

NO_OPTION = {"recipe", "train.extended_from", "train.init"}  # fields that no option sets
DEFAULT_RECIPE = "digits-dt"
ENCODER = "method.encoder"
METAVARS: dict[Any, str] = {bool: "{on,off}", int: "N", float: "FLOAT", str: "NAME"}
MANY_OPTIONS = 25  # more make a usage line that nobody reads


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, with the nearest known option.

    Its epilog keeps its lines.
    """

    def __init__(self, **given: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **given})

    def format_help(self) -> str:
        """Return the help; many options are listed once, and not in the usage line as well."""
        if self.usage is None and len(self._actions) > MANY_OPTIONS:
            positional = [a for a in self._actions if not a.option_strings]
            forms = {None: "{}", "?": "[{}]", "*": "[{} ...]", "+": "{} ..."}
            names = [forms[a.nargs].format(a.metavar) for a in positional]
            self.usage = " ".join(["%(prog)s", *names, "[options]"])
        width = max(20, shutil.get_terminal_size().columns - 2)  # as argparse chooses it
        self.description = textwrap.fill(self.description or "", width)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w.-]+)", message):
            known = [o for action in self._actions for o in action.option_strings]
            message = f"unknown option {unknown[1]}{_nearest(unknown[1], known)}"
        elif unknown := re.match(r"argument COMMAND: invalid choice: '(.*?)'", message):
            known = [c for action in self._actions for c in action.choices or ()]
            message = f"unknown command {unknown[1]}{_nearest(unknown[1], known)}"
        self.exit(2, f"noprop: error: {printable(message)} (see {self.prog} --help)\n")


def whole_number(text: str) -> int:
    """Parse a count of at most a billion.

    Raises:
        argparse.ArgumentTypeError: If the text is not such an integer.
    """
    if re.fullmatch(r"[+-]?\d{1,10}", text.strip()) and abs(value := int(text)) <= 1_000_000_000:
        return value
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    raise argparse.ArgumentTypeError(f"wanted a whole number up to 1,000,000,000, got {shown!r}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def path(text: str) -> Path:
    """Return a path, with a leading ``~`` expanded if the shell did not expand it."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{text}: no such user or no home folder; for a file of this name use ./{text}"
        ) from None


# -- options that several commands have ------------------------------------------------------------


def add_run(parser: Parser) -> None:
    """Add the argument of a run folder."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder")


def add_quiet(parser: Parser) -> None:
    """Add ``--quiet``."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def add_data_dir(parser: Parser) -> None:
    """Add ``--data-dir``."""
    parser.add_argument(
        "--data-dir", type=path, metavar="DIR", help="first folder to search for data"
    )


def add_set(parser: Parser, text: str) -> None:
    """Add ``--set``."""
    action = parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help=text
    )
    complete_with(action, [f"{name}=" for name, *_ in fields_of() if name not in NO_OPTION])


def complete_with(action: argparse.Action, words: Sequence[str]) -> None:
    """Let the shell complete a value from some words; argcomplete reads this attribute."""
    vars(action)["completer"] = lambda **_: words


def add_encoder(parser: Parser, *, fields: bool = False) -> None:
    """Add ``--encoder``: a function or, with ``fields``, also a built-in encoder."""
    if not fields:
        text = "the function of the run's own image encoder, if it was trained with one"
        parser.add_argument("--encoder", metavar="MODULE:FUNCTION", help=text)
        return
    kind, default = next(
        (kind, default) for name, kind, default, _ in fields_of() if name == ENCODER
    )
    built_in = ",".join(name for name in kind.__args__ if name != "custom")
    text = "image path: convolutions of Fig. 5, five with batch norm, small ones, an MLP, a "
    text += "frozen network of timm, or a function that makes your own"
    parser.add_argument(
        "--encoder", metavar=f"{{{built_in}}}|timm:NAME|MODULE:FUNCTION", help=f"{text} [{default}]"
    )


def add_trained_run(parser: Parser) -> None:
    """Add the arguments of a command that uses a trained run."""
    add_run(parser)
    parser.add_argument(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps [the device of training]"
    )
    add_set(
        parser,
        "set a field that changes no weight, such as evaluation.samples=10 or, of CT and FM, "
        "method.steps=100; may be repeated",
    )
    add_encoder(parser)


def load_run(arguments: argparse.Namespace) -> "Model":
    """Load the run that the arguments of :func:`add_trained_run` name."""
    from noprop.model import load

    return load(
        arguments.run,
        device=arguments.device,
        encoder=named_encoder(arguments.encoder),
        overrides=assignments(arguments),
    )


def option_names() -> dict[str, str]:
    """Return options by dotted field: its last part, with the table's name if it is ambiguous."""
    names = [n for n, *_ in fields_of() if n not in NO_OPTION]
    count = Counter(n.rpartition(".")[2] for n in names)
    options = {"method.name": "--method", "evaluation.budget": "--evaluation"}
    for name in names:
        if name in options:
            continue
        section, _, last = name.rpartition(".")
        alone = count[last] == 1 or section == "train"
        options[name] = "--" + (last if alone else f"{section}-{last}").replace("_", "-")
    return options


def add_fields(parser: Parser) -> None:
    """Add an option for each field of the configuration."""
    options, recipe = option_names(), find_recipe(DEFAULT_RECIPE)
    groups: dict[str, Any] = {}
    for name, kind, default, text in fields_of():
        own_encoder = parser.prog.endswith(("train", "grid", "describe"))
        if name in NO_OPTION or (name == ENCODER and own_encoder):
            continue
        if name == "train.seed" and parser.prog.endswith("grid"):
            continue
        section, _, last = name.partition(".")
        value = getattr(
            getattr(recipe, section), last, default
        )  # default for other methods' fields
        if section not in groups:
            title = f"{section}: fields of the table [{section}] of a --config file"
            groups[section] = parser.add_argument_group(title)
        groups[section].add_argument(
            options[name],
            dest=name,
            metavar=_metavar(kind),
            help=f"{text} [{_shown(value)}]".replace("%", "%%"),
        )


def _metavar(kind: Any) -> str:
    """Return what ``--help`` calls a value of a type: ``N``, ``FRACTION``, ``{on,off}`` and so on.

    A type that is a number or a word is ``FLOAT|full|off``.
    """
    if kind in METAVARS:
        return METAVARS[kind]
    values = [value for value in get_args(kind) if value is not NoneType]
    if get_origin(kind) is Literal:
        words = [f'"{word}"' if " " in word else word for word in values]
        return f"{{{','.join(words)}}}"
    if get_origin(kind) is Annotated:
        limits = [limit for value in kind.__metadata__ for limit in getattr(value, "metadata", ())]
        below_1 = any(getattr(limit, "lt", None) == 1 for limit in limits)
        return "FRACTION" if below_1 else METAVARS[kind.__origin__]
    return "|".join(_metavar(value).strip("{}").replace(",", "|") for value in values)


def _shown(default: Any) -> str:
    if default is None:
        return "unset"
    return ("on" if default else "off") if isinstance(default, bool) else str(default)


# -- values of options -----------------------------------------------------------------------------


def configuration(arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration: recipe or file, changed by ``--set``, then by options."""
    if arguments.config and arguments.recipe:
        raise ConfigError("give a recipe or --config FILE, not both")
    config = from_toml(arguments.config) if arguments.config else None
    config = config or find_recipe(arguments.recipe or DEFAULT_RECIPE)
    return replace(config, overrides(arguments))


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields set by ``--set`` and by options, which take precedence."""
    changes = assignments(arguments)
    for name, *_ in fields_of():
        text = getattr(arguments, name, None)
        if text is not None:
            changes[name] = parse_value(name, text)
    return changes


def assignments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields set by ``--set``."""
    changes: dict[str, Any] = {}
    for pair in arguments.set:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set wants FIELD=VALUE, got {pair!r}")
        changes[name] = parse_value(name, text)
    return changes


def named_encoder(name: str | None) -> Any:
    """Import the function of ``--encoder module:function``; only the user names code to import."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--encoder wants MODULE:FUNCTION, got {name!r}: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module may raise anything, or exit
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--encoder {name}: importing {module} failed: {words}") from error
    if not callable(factory):
        raise ConfigError(
            f"--encoder wants MODULE:FUNCTION, got {name!r}: {function} is "
            f"{type(factory).__name__}, not callable"
        )
    return factory


def encoder_or_field(arguments: argparse.Namespace) -> Any:
    """Return the function of ``--encoder``, or set a field: of the method, or of the data for timm.

    A network of timm is frozen, so it is a way of reading the data.
    """
    if (arguments.encoder or "").startswith("timm:"):
        setattr(arguments, "data.features", arguments.encoder)
        return None
    if ":" in (arguments.encoder or ""):
        return named_encoder(arguments.encoder)
    setattr(arguments, ENCODER, arguments.encoder)
    return None


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as ``0..4`` or ``0,3,7``; ranges include both ends."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        ends = [first, last] if dots else [first, first]
        if not all(re.fullmatch(r"\s*[0-9]{1,19}\s*", end) for end in ends):
            raise ConfigError(f"--seeds: wanted seeds such as 0..4 or 0,3,7, got {text!r}")
        low, high = map(int, ends)
        if low > high:
            raise ConfigError(f"--seeds: the range {part.strip()} is empty; its ends are swapped")
        if high - low >= 100_000:
            raise ConfigError(f"--seeds: the range {part.strip()} has more than 100,000 seeds")
        seeds += range(low, high + 1)
    return seeds


def parse_duration(text: str, option: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``25m``, ``2h``, ``1h30m`` or ``90``.

    Raises:
        ConfigError: If the text is not a duration; the message names ``option``.
    """
    match = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?", text.strip())
    if not text.strip() or not match:
        raise ConfigError(f"{option}: wanted a duration such as 90s, 25m or 1h30m, got {text!r}")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds
