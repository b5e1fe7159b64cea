"""``noprop bench``: speed and memory compared with a straightforward PyTorch loop."""

import argparse
import importlib.util
import itertools
import json
from contextlib import closing
from pathlib import Path

from noprop.bench import SUITES
from noprop.commands.options import Parser, add_data_dir, add_quiet, path, whole_number
from noprop.errors import ConfigError
from noprop.terminal import printable, show, show_json, tell

__all__ = ["HELP", "add_options", "run"]

HELP = "Measure speed and memory against a naive PyTorch baseline, on the CPU."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
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
        "--dataset",
        default="mnist",
        metavar="NAME",
        help="mnist, fashion-mnist, cifar10 or cifar100 [mnist]",
    )
    parser.add_argument(
        "--methods",
        metavar="LIST",
        help="a comma-separated list; scaling and memory always use dt; fast is the recipe "
        "DATASET-fast, of accuracy alone [all that are installed: dt,ct,fm,backprop,adjoint]",
    )
    for name, (default, text) in numbers.items():
        shown = f" [{default}]" if default else ""
        parser.add_argument(
            f"--{name}", type=whole_number, default=default, metavar="N", help=f"{text}{shown}"
        )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        metavar="FLOAT",
        help="duration of a contestant's run in a round [3]",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="FLOAT",
        help="accuracy that the suite accuracy aims at, in percent [the paper's: mnist 99.47, "
        "cifar10 79.25, cifar100 45.93]",
    )
    parser.add_argument("--quick", action="store_true", help="one round of 0.2 seconds each")
    add_quiet(parser)
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for the results [bench, bench-2, …]",
    )
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.bench import DEFAULT_SUITES
    from noprop.bench.settings import Settings
    from noprop.bench.suites import Results, bench_text, draw_bench, run_suites, step_count
    from noprop.files import write_whole
    from noprop.machine import core_count
    from noprop.report.progress import Report
    from noprop.run.folder import make_free_folder
    from noprop.training.events import Step

    suites = tuple(dict.fromkeys(arguments.suites)) or DEFAULT_SUITES
    workers = core_count() if arguments.workers is None else arguments.workers
    methods = Settings.methods
    if arguments.methods is not None:
        methods = tuple(name.strip() for name in arguments.methods.split(","))
    elif importlib.util.find_spec("torchdiffeq") is None:
        methods = tuple(m for m in methods if m != "adjoint")
        tell("without adjoint, which needs torchdiffeq: pip install 'noprop[ode]'")
    if "fast" in methods and suites != ("accuracy",):
        raise ConfigError("--methods: fast is for the suite accuracy alone")
    settings = Settings(
        dataset=arguments.dataset,
        methods=methods,
        blocks=arguments.blocks,
        steps=arguments.steps,
        images=min(500 * workers, arguments.images) if arguments.quick else arguments.images,
        workers=workers,
        rounds=1 if arguments.quick else arguments.rounds,
        seconds=0.2 if arguments.quick else arguments.seconds,
        target=arguments.target,
        data_dir=arguments.data_dir,
    )
    steps = step_count(settings, suites)
    out = arguments.out or make_free_folder("bench", Path())
    place = out / "bench.json"
    if place.exists():
        raise ConfigError(f"--out: {out} already has a bench.json; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(place, b"{}\n")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror or error}") from None
    report, numbers = Report(quiet=arguments.quiet), itertools.count(1)

    def progress(text: str) -> None:
        report(Step(text, next(numbers), steps))

    def keep(results: Results) -> None:
        write_whole(place, (json.dumps(results, indent=1) + "\n").encode())

    with closing(report):
        results = run_suites(settings, suites, progress, keep)
    try:
        paths = draw_bench(results, out)
    except ConfigError as error:  # figures are optional: the measurements are printed anyway
        tell(f"no figures: {error}")
        paths = []
    if arguments.json:
        show_json(results)
        return 0
    show(bench_text(results))
    show("\n" + "\n".join(map(printable, [place, *paths])))
    return 0
