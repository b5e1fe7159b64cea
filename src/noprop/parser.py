"""Every command's options, as argparse has them; torch is not imported for it.

Options of a run come from the configuration's own fields.
"""

import argparse
import difflib
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from noprop.bench import SUITES
from noprop.config import fields_of
from noprop.recipes import RECIPE_NAMES, find_recipe
from noprop.terminal import printable
from noprop.version import __version__

__all__ = ["DEFAULT_RECIPE", "Parser", "build_parser", "option_names"]

SKIPPED = {"recipe"}
# Here rather than from noprop.paper, which imports torch: help comes at once.
SCALES = (
    "full; smoke, a look at every cell; or such as epochs=0.05,images=5000,steps=100: epochs, a "
    "fraction of the paper's; images and test, at most so many; steps, T at most, of ct, fm and "
    "adjoint; validation, the fraction held out; runs, of inference; samples, chains averaged; "
    "seeds, how many"
)
DEFAULT_RECIPE = "digits-dt"


class Parser(argparse.ArgumentParser):
    """Errors are one line, and name the nearest option to an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        if unknown := re.match(r"unrecognized arguments: (--?[\w.-]+)", message):
            known = [o for action in self._actions for o in action.option_strings]
            message = f"unknown option {unknown[1]}{_nearest(unknown[1], known)}"
        elif unknown := re.match(r"argument COMMAND: invalid choice: '(.*?)'", message):
            known = [c for action in self._actions for c in action.choices or ()]
            message = f"unknown command {unknown[1]}{_nearest(unknown[1], known)}"
        self.exit(2, f"noprop: error: {printable(message)} (see {self.prog} --help)\n")


def whole_number(text: str) -> int:
    """An integer that is counted with: more than a billion of anything is a slip.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if re.fullmatch(r"[+-]?\d{1,10}", text.strip()) and abs(value := int(text)) <= 1_000_000_000:
        return value
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    raise argparse.ArgumentTypeError(f"wanted a whole number up to 1,000,000,000, got {shown!r}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _path(text: str) -> Path:
    """A path, with the home folder in place of a leading ``~`` where the shell left it."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{text}: there is no such user, or no home folder; a file of this name is ./{text}"
        ) from None


def option_names() -> dict[str, str]:
    """Option by dotted field: its last part, with the table's name where two share one."""
    names = [n for n, *_ in fields_of() if n not in SKIPPED]
    count = Counter(n.rpartition(".")[2] for n in names)
    options = {"method.name": "--method"}
    for name in names:
        if name in options:
            continue
        section, _, last = name.rpartition(".")
        alone = count[last] == 1 or section == "train"
        options[name] = "--" + (last if alone else f"{section}-{last}").replace("_", "-")
    return options


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the commands."""
    parser = Parser(
        prog="noprop",
        description="Train neural networks block by block, without back-propagating through them.",
    )
    parser.add_argument("--version", action="version", version=f"noprop {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made: dict[str, Parser] = {}

    def command(name: str, text: str) -> Parser:
        made[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made[name].add_argument("--json", action="store_true", help="print results as JSON")
        return made[name]

    train = command("train", "Train a recipe, evaluate it, and leave a run folder.")
    # Both, for torchrun takes --run for an option of its own, even behind the program's name.
    train.add_argument(
        "--run", "--run-dir", type=_path, metavar="DIR", help="run folder [runs/RECIPE]"
    )
    train.add_argument("--resume", type=_path, metavar="RUN", help="go on with a run")
    train.add_argument(
        "--units",
        metavar="LIST",
        help="train these alone, in the folder of --run or --resume, such as block-1,block-2 or "
        "block-3..block-7,readout; noprop assemble makes the model of all",
    )
    train.add_argument("--quiet", action="store_true", help="show no progress")
    _add_engine(train)
    describe = command("describe", "Show units, parameters, memory and schedule of a recipe.")
    for sub in (train, describe):
        sub.add_argument(
            "recipe",
            nargs="?",
            metavar="RECIPE",
            help=f"{RECIPE_NAMES} [{DEFAULT_RECIPE}, whose values are shown below]",
        )
        sub.add_argument("--config", type=_path, metavar="FILE", help="a TOML file of fields")
        sub.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE", help="set any field"
        )
        _add_fields(sub)
    grid = command("grid", "Train recipes by seeds, each a run folder, and compare them.")
    _add_grid(grid)
    assemble = command("assemble", "Make a run's model out of its trained units, and evaluate it.")
    assemble.add_argument("run", type=_path, metavar="RUN", help="a run folder")
    assemble.add_argument("--quiet", action="store_true", help="show no progress")
    evaluate = command("evaluate", "Measure a trained run on a part of its data.")
    predict = command("predict", "Classify images, or arrays of .npy and .npz files.")
    plot = command("plot", "Draw a run: curves, schedule, a label appearing, embeddings.")
    for sub in (evaluate, predict, plot):
        sub.add_argument("run", type=_path, metavar="RUN", help="a run folder")
        sub.add_argument("--device", help="auto, cpu, cuda or mps [as trained]")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="set a field of evaluation, or method.steps, sampler or tolerance of CT and FM",
        )
    evaluate.add_argument(
        "--part", choices=("test", "validation", "train"), default="test", help="[test]"
    )
    predict.add_argument("files", type=_path, nargs="+", metavar="FILE")
    predict.add_argument(
        "--format",
        choices=("table", "csv", "json"),
        default="table",
        help="json has names as they are; csv begins with ' those that would be formulas [table]",
    )
    predict.add_argument(
        "--samples", type=whole_number, help="K, chains to average [as configured]"
    )
    predict.add_argument(
        "--average", choices=("path", "readout"), help="[path, where the method has one]"
    )
    predict.add_argument("--no-noise", action="store_true", help="run the mean chain")
    predict.add_argument("--seed", type=int, default=0, help="of the chains [0]")
    predict.add_argument("--top", type=whole_number, default=3, help="classes to show [3]")
    plot.add_argument("--out", type=_path, metavar="DIR", help="where to [RUN/plots]")
    bench = command("bench", "Measure speed and memory against the plain loop, on the CPU.")
    _add_bench(bench)
    reproduce = command(
        "reproduce", "Reproduce the paper's tables and figures, all of them or a fraction."
    )
    _add_reproduce(reproduce)
    data = command("data", "Show the data sets: what is here, where, and whether it is intact.")
    data.add_argument("--verify", action="store_true", help="compare every file with its hash")
    for sub in (train, grid, assemble, evaluate, plot, bench, reproduce, data):
        sub.add_argument("--data-dir", type=_path, metavar="DIR", help="look for data here first")
    own = "makes an image encoder of your own"
    for sub in (assemble, evaluate, predict, plot):
        sub.add_argument("--encoder", metavar="MODULE:FUNCTION", help=own)
    for sub in (train, grid):
        sub.add_argument(
            "--encoder", metavar="VALUE", help=f"auto|conv|small|mlp, or MODULE:FUNCTION that {own}"
        )
    return parser, made


def _add_grid(parser: Parser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help=RECIPE_NAMES)
    parser.add_argument(
        "--seeds", default="0..4", metavar="LIST", help="such as 0..4 or 0,3,7 [0..4]"
    )
    parser.add_argument(
        "--out",
        type=_path,
        default=Path("runs"),
        metavar="DIR",
        help="where the run folders are, RECIPE-seed-N; finished ones are not trained again [runs]",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="set any field of all"
    )
    _add_engine(parser)
    _add_fields(parser)


def _add_engine(parser: Parser) -> None:
    group = parser.add_argument_group("where units are trained")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes here, or Ray [local]"
    )
    group.add_argument(
        "--address",
        metavar="WHERE",
        help="ray: a cluster, such as auto, host:port or ray://host:port [RAY_ADDRESS, else a Ray "
        "of this machine]",
    )
    group.add_argument(
        "--storage",
        metavar="URL",
        help="ray: checkpoints go there, such as s3://bucket/runs or file:///mnt/runs [the run "
        "folder, which all machines must share]",
    )
    for name, text in {
        "cpus": "CPUs, or a part of one, of a unit [as many as threads, 1 beside a GPU]",
        "gpus": "GPUs, or a part of one, of a unit [0]",
    }.items():
        option = f"--{name}-per-unit"
        group.add_argument(option, dest=name, type=float, metavar="N", help=f"ray: {text}")
    group.add_argument(
        "--retries",
        type=whole_number,
        metavar="N",
        help="ray: new starts of a unit whose worker is lost [10]",
    )


def _add_bench(parser: Parser) -> None:
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="; ".join(f"{name}: {text}" for name, text in SUITES.items())
        + " [all except accuracy, which needs the data and takes the longest]",
    )
    numbers = {
        "blocks": (10, "T of dt and backprop"),
        "steps": (1000, "T of prediction of the others"),
        "images": (2000, "images in a measurement of prediction"),
        "rounds": (5, "of each measurement; contestants alternate"),
        "workers": (None, "processes of dt, threads of the others and of prediction [all cores]"),
    }
    parser.add_argument(
        "--dataset", default="mnist", help="mnist, fashion-mnist, cifar10 or cifar100 [mnist]"
    )
    parser.add_argument(
        "--methods",
        help="a comma-separated list; scaling and memory always use dt [all that are installed: "
        "dt,ct,fm,backprop,adjoint]",
    )
    for name, (default, text) in numbers.items():
        shown = f" [{default}]" if default else ""
        parser.add_argument(
            f"--{name}", type=whole_number, default=default, metavar="N", help=f"{text}{shown}"
        )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="duration of a contestant's run in a round [3]"
    )
    parser.add_argument(
        "--target",
        type=float,
        default=99.0,
        help="accuracy that the suite accuracy aims at, in percent [99]",
    )
    parser.add_argument("--quick", action="store_true", help="one round of 0.2 seconds each")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--out",
        type=_path,
        metavar="DIR",
        help="folder for the results [bench, bench-2, …]",
    )


def _add_reproduce(parser: Parser) -> None:
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="WHAT",
        help="table1, table2, table3, table5, fig3, fig4, fig6, fig7",
    )
    parser.add_argument(
        "--only",
        metavar="LIST",
        help="some cells: data sets, methods, embeddings, such as mnist,cifar10,dt,one-hot",
    )
    parser.add_argument("--scale", default="full", metavar="SCALE", help=f"{SCALES} [full]")
    parser.add_argument("--seeds", metavar="LIST", help="such as 0..2 or 0,3 [as many as SCALE]")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: show cells, what is done, and how long the rest takes on this machine",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="train nothing: write tables and figures of the results that are there",
    )
    parser.add_argument(
        "--jobs",
        type=whole_number,
        metavar="N",
        help="cells at a time, each with one thread; on one GPU they share it [all cores]",
    )
    parser.add_argument(
        "--deadline",
        metavar="TIME",
        help="stop cleanly within such as 25m or 1h30m; the same command goes on another day",
    )
    parser.add_argument(
        "--runs",
        type=_path,
        default=Path("runs/reproduction"),
        metavar="DIR",
        help="where run folders go [runs/reproduction]",
    )
    parser.add_argument(
        "--out",
        type=_path,
        default=Path("results/reproduction"),
        metavar="DIR",
        help="where results.jsonl, tables and figures go [results/reproduction]",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_fields(parser: Parser) -> None:
    options, recipe = option_names(), find_recipe(DEFAULT_RECIPE)
    groups: dict[str, Any] = {}
    for name, kind, default, text in fields_of():
        trains = parser.prog.endswith(("train", "grid"))
        if name in SKIPPED or (name == "method.encoder" and trains):
            continue
        if name == "train.seed" and parser.prog.endswith("grid"):
            continue
        section, _, last = name.partition(".")
        value = getattr(getattr(recipe, section), last, default)  # default: of another method
        group = groups.setdefault(section, parser.add_argument_group(f"fields of {section}"))
        shown = "on or off" if kind is bool else _choices(kind)
        group.add_argument(
            options[name],
            dest=name,
            metavar="VALUE",
            help=f"{text}{f' ({shown})' if shown else ''} [{_shown(value)}]".replace("%", "%%"),
        )


def _choices(kind: Any) -> str:
    values = getattr(kind, "__args__", ())
    return "|".join(values) if values and all(isinstance(v, str) for v in values) else ""


def _shown(default: Any) -> str:
    if default is None:
        return "unset"
    return ("on" if default else "off") if isinstance(default, bool) else str(default)
