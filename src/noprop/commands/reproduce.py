"""``noprop reproduce``: reproduce the paper's tables and figures."""

import argparse
import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noprop.commands.options import (
    Parser,
    add_data_dir,
    add_quiet,
    parse_duration,
    parse_seeds,
    path,
    whole_number,
)
from noprop.errors import ConfigError
from noprop.terminal import printable, show, show_json, tell

if TYPE_CHECKING:
    from noprop.paper.numbers import Number
    from noprop.paper.records import Summary
    from noprop.paper.reproduce import Planned, Reproduction

__all__ = ["HELP", "add_options", "run"]

SCALES = (
    "full; smoke, a short run of every cell; or changes such as epochs=0.05,images=5000,steps=100. "
    "epochs: fraction of the paper's; images and test: greatest numbers of images; steps: greatest "
    "T of ct, fm and adjoint; validation: fraction held out; runs: inference runs; samples: chains "
    "averaged; seeds: number of seeds"
)
MOST_JOBS = 1024  # the same limit as for worker processes of a run
BRIEF = ["test accuracy in %", "scale", "seeds × runs", "one chain", "averaged"]
HELP = "Reproduce the paper's tables and figures, at full or reduced scale."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="WHAT",
        help="table1, table2, table3, table5, fig3, fig4, fig6, fig7",
    )
    parser.add_argument(
        "--only",
        metavar="LIST",
        help="select cells by data set, method and embedding, such as mnist,cifar10,dt,one-hot",
    )
    parser.add_argument("--scale", default="full", metavar="SCALE", help=f"{SCALES} [full]")
    parser.add_argument(
        "--seeds", metavar="LIST", help="seeds, such as 0..2 or 0,3 [those of SCALE]"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: show the cells, which are done, and how long the others take here",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="train nothing: write tables and figures of existing results",
    )
    parser.add_argument(
        "--jobs",
        type=whole_number,
        metavar="N",
        help="number of cells to train at a time, each with one thread; they share a GPU [all "
        "cores]",
    )
    parser.add_argument(
        "--deadline",
        metavar="TIME",
        help="stop with checkpoints within a time such as 25m or 1h30m; the same command resumes",
    )
    parser.add_argument(
        "--runs",
        type=path,
        default=Path("runs/reproduction"),
        metavar="DIR",
        help="folder for run folders [runs/reproduction]",
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("results/reproduction"),
        metavar="DIR",
        help="folder for results.jsonl, tables and figures [results/reproduction]",
    )
    add_quiet(parser)
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.machine import core_count
    from noprop.paper.pages import parameter_table, write_pages
    from noprop.paper.records import read_records, summaries
    from noprop.paper.reproduce import Reproduction, plan
    from noprop.paper.reproduce import reproduce as run_experiments
    from noprop.paper.scale import parse_scale
    from noprop.paper.tables import brief, result_text
    from noprop.report.progress import Report
    from noprop.report.tables import table
    from noprop.training.signals import Terminated, answered_between_updates

    wanted = Reproduction(
        arguments.experiments,
        only=_words(arguments.only),
        scale=parse_scale(arguments.scale),
        seeds=None if arguments.seeds is None else parse_seeds(arguments.seeds),
        runs=arguments.runs,
        out=arguments.out,
        data_dir=arguments.data_dir,
    )
    at_a_time = core_count() if arguments.jobs is None else arguments.jobs
    if at_a_time < 1:
        raise ConfigError(f"--jobs must be at least 1, got {at_a_time}")
    if at_a_time > MOST_JOBS:
        raise ConfigError(f"--jobs must be at most {MOST_JOBS}, got {at_a_time:,}")
    deadline = None
    if arguments.deadline is not None:
        deadline = parse_duration(arguments.deadline, "--deadline")
    report = Report(result=result_text, quiet=arguments.quiet)
    if arguments.plan:
        return _show_plan(arguments, plan(wanted, report), wanted, at_a_time)
    failed: dict[str, Any] = {}
    if arguments.report:
        paths = write_pages(wanted.experiments, wanted.records, wanted.runs, wanted.out)
    else:
        try:
            with answered_between_updates(), closing(report):
                paths, failed = run_experiments(
                    wanted, at_a_time=at_a_time, deadline=deadline, emit=report
                )
        except KeyboardInterrupt as stop:
            tell("stopped; resume with the same command")
            return 143 if isinstance(stop, Terminated) else 130
    chosen = {(cell.name, wanted.scale.name) for cell in wanted.cells}
    found = summaries(read_records(wanted.records))
    if arguments.report:  # results of any scale
        chosen = {(s.cell.name, s.scale) for s in found if s.cell in wanted.cells}
    found = [s for s in found if (s.cell.name, s.scale) in chosen]
    if arguments.json:
        about = {
            "cells": list(map(_numbers, found)),
            "failed": {run: str(error) for run, error in failed.items()},
            "files": list(map(str, paths)),
        }
        show_json(about)
    else:
        if found:
            show(table(BRIEF, brief(found)) + "\n")
        if "table5" in wanted.experiments:
            show(parameter_table() + "\n")
        show("written: " + ", ".join(map(printable, paths)))
    for error in failed.values():
        tell(f"noprop: error: {error}")
    return 1 if failed else 0


def _words(text: str | None) -> list[str]:
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not words:
        raise ConfigError("--only: names no cell; give words such as mnist,dt, or omit it")
    return words


def _numbers(summary: "Summary") -> dict[str, Any]:
    """Return for JSON the test accuracies in % of one chain and of our prediction, with errors."""
    numbers = {mode: summary.accuracy(mode) for mode in ("single", "default")}
    return {
        "cell": summary.cell.name,
        "scale": summary.scale,
        "extent": summary.extent,
        "seeds": summary.seeds,
        **{name: n and _number(n) for name, n in numbers.items()},
    }


def _number(number: "Number") -> dict[str, float | None]:
    error = None if math.isnan(number.error) else number.error  # JSON has no NaN
    return {"accuracy": number.mean, "se": error}


def _show_plan(
    arguments: argparse.Namespace, planned: "list[Planned]", wanted: "Reproduction", at_a_time: int
) -> int:
    from noprop.report.tables import duration, table

    left = [(p.seconds or 0.0) * (len(p.seeds) - len(p.done)) for p in planned]
    if arguments.json:
        cells = [
            {"cell": p.cell.name, "seeds": p.seeds, "done": p.done, "seconds": p.seconds}
            for p in planned
        ]
        show_json({"scale": wanted.scale.name, "cells": cells})
        return 0
    rows = [
        [
            p.cell.name,
            ",".join(map(str, p.seeds)),
            "all" if p.done == p.seeds else ",".join(map(str, p.done)) or "–",
            "" if p.seconds is None else duration(p.seconds),
            duration(seconds) if seconds else "–",
        ]
        for p, seconds in zip(planned, left, strict=True)
    ]
    show(table([f"cell, scale {wanted.scale.name}", "seeds", "done", "a seed", "left"], rows))
    runs = sum(len(p.seeds) for p in planned)
    done = sum(len(p.done) for p in planned)
    # The longest run cannot be shared among processes.
    longest = max([p.seconds or 0.0 for p in planned], default=0.0)
    whole = max(sum(left) / at_a_time, longest)
    show(
        f"\n{done} of {runs} runs are done; the others take {duration(sum(left))} in one process "
        f"with one thread,\nor about {duration(whole)} with {at_a_time} at a time (--jobs), "
        "estimated from steps timed on this machine"
    )
    return 0
