"""``noprop reproduce``."""

import argparse
import math
from contextlib import closing
from typing import Any

from noprop.commands.options import parse_duration, parse_seeds
from noprop.errors import ConfigError
from noprop.machine import core_count
from noprop.paper.numbers import Number
from noprop.paper.pages import parameter_table, write_pages
from noprop.paper.records import Summary, read_records, summaries
from noprop.paper.reproduce import Planned, Reproduction, plan
from noprop.paper.reproduce import reproduce as run_experiments
from noprop.paper.scale import parse_scale
from noprop.paper.tables import brief, result_text
from noprop.report.progress import Report
from noprop.report.tables import duration, table
from noprop.terminal import printable, show, show_json, tell
from noprop.training.signals import Terminated, answered_between_updates

__all__ = ["reproduce"]

MOST_JOBS = 1024  # as many as worker processes of a run
BRIEF = ["test accuracy in %", "scale", "seeds × runs", "one chain", "averaged"]


def reproduce(arguments: argparse.Namespace) -> int:
    """``noprop reproduce``: status 1 if a cell failed."""
    wanted = Reproduction(
        arguments.experiments,
        only=_words(arguments.only),
        scale=parse_scale(arguments.scale),
        seeds=None if arguments.seeds is None else parse_seeds(arguments.seeds),
        runs=arguments.runs,
        out=arguments.out,
        data_dir=arguments.data_dir,
    )
    beside = core_count() if arguments.jobs is None else arguments.jobs
    if beside < 1:
        raise ConfigError(f"--jobs must be at least 1, got {beside}")
    if beside > MOST_JOBS:
        raise ConfigError(f"--jobs must be at most {MOST_JOBS}, got {beside:,}")
    deadline = None
    if arguments.deadline is not None:
        deadline = parse_duration(arguments.deadline, "--deadline")
    report = Report(result=result_text, quiet=arguments.quiet)
    if arguments.plan:
        return _show_plan(arguments, plan(wanted, report), wanted, beside)
    failed: dict[str, Any] = {}
    if arguments.report:
        paths = write_pages(wanted.experiments, wanted.records, wanted.runs, wanted.out)
    else:
        try:
            with answered_between_updates(), closing(report):
                paths, failed = run_experiments(
                    wanted, beside=beside, deadline=deadline, emit=report
                )
        except KeyboardInterrupt as stop:
            tell("stopped; resume with the same command")
            return 143 if isinstance(stop, Terminated) else 130
    chosen = {(cell.name, wanted.scale.name) for cell in wanted.cells}
    found = summaries(read_records(wanted.records))
    if arguments.report:  # of whatever scale
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
        raise ConfigError("--only: names no cell; give such as mnist,dt, or leave it out")
    return words


def _numbers(summary: Summary) -> dict[str, Any]:
    """Test accuracy in % of one chain and of our prediction, with standard errors, for JSON."""
    numbers = {mode: summary.accuracy(mode) for mode in ("single", "default")}
    return {
        "cell": summary.cell.name,
        "scale": summary.scale,
        "extent": summary.extent,
        "seeds": summary.seeds,
        **{name: n and _number(n) for name, n in numbers.items()},
    }


def _number(number: Number) -> dict[str, float | None]:
    error = None if math.isnan(number.error) else number.error  # JSON has no NaN
    return {"accuracy": number.mean, "se": error}


def _show_plan(
    arguments: argparse.Namespace, planned: list[Planned], wanted: Reproduction, beside: int
) -> int:
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
    whole = max(sum(left) / beside, longest)
    show(
        f"\n{done} of {runs} runs are done; the others take {duration(sum(left))} of one process "
        f"of one thread,\nabout {duration(whole)} with {beside} at a time (--jobs), by steps timed "
        "just now on this machine"
    )
    return 0
