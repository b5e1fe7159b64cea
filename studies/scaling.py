"""T blocks on P machines on paper (docs/scaling.md), compared with small runs on this machine.

    python studies/scaling.py measure                # constants and runs: results/scaling.json
    python studies/scaling.py check                  # predicted beside measured
    python studies/scaling.py predict                # hours and traffic, MNIST's block
    python studies/scaling.py predict --workload large --mtbf-hours inf 50700
    python studies/scaling.py predict --blocks 40 --machines 8 --gbit 10 --mtbf-hours 1000
    python studies/scaling.py figures                # docs/images/scaling-*.png

The runs have two processes of one thread each, which talk over the loopback.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from noprop.bench.contestants import Contestant, Timing, race, spread
from scaling_model.cluster import Machine, Workload, all_reduce
from scaling_model.methods import Forecast, data_parallel, noprop_fixed, noprop_learned, pipeline
from scaling_runs import (
    BATCHES,
    CLASSES,
    DIM,
    build_costs,
    build_data_parallel,
    build_learned,
    build_links,
    build_noprop,
    build_pipeline,
)
from scaling_tables import check_table, constants_table, draw_figures, predict_text
from study import RESULTS, provenance

IMAGES = RESULTS.parent / "docs" / "images"
PARAMETERS = 919_946  # of MNIST's block, Table 5
# The value of a constant over rounds: other work on a shared machine only adds to a time.
TAKEN = "least"


def main() -> None:
    """Measure, compare or predict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "check", "predict", "figures"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="duration of a run in a round")
    parser.add_argument("--workload", choices=("small", "large"), default="small")
    parser.add_argument("--blocks", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--gbit", type=float, nargs="+", default=[1.0, 100.0])
    parser.add_argument("--mtbf-hours", type=float, nargs="+", default=[math.inf, 24.0])
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    given = parser.parse_args()
    if given.what == "measure":
        about = provenance()
        found = {"machine": about["machine"], "rounds": given.rounds}
        found |= measure(given.rounds, given.seconds) | {"command": about["made_by"]}
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(given.out.read_text())
    if given.what in ("measure", "check"):
        print(constants_table(found), check_table(found), sep="\n\n")
    elif given.what == "predict":
        many = given.blocks, given.machines, given.gbit, given.mtbf_hours
        print(predict_text(found, given.workload, *many))
    else:
        print(*draw_figures(found, IMAGES), sep="\n")


# -- the runs --------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Forecast]]] = {
    "NoProp fixed": (build_noprop, noprop_fixed),
    "NoProp learned": (build_learned, noprop_learned),
    # No overlap, since the cores that would send are those that compute.
    "data parallel": (build_data_parallel, data_parallel),
    "pipeline": (build_pipeline, pipeline),
}
# Kind, T, B, processes, and the micro-batches of a pipeline.
RUNS: tuple[tuple[str, int, int, int, *tuple[int, ...]], ...] = (
    ("NoProp fixed", 4, 64, 1),
    ("NoProp fixed", 4, 64, 2),
    ("NoProp fixed", 3, 64, 2),
    ("NoProp fixed", 1, 64, 2),
    ("NoProp fixed", 1, 8, 2),
    ("NoProp learned", 4, 64, 1),
    ("NoProp learned", 4, 64, 2),
    ("NoProp learned", 4, 8, 2),
    ("data parallel", 4, 64, 1),
    ("data parallel", 4, 64, 2),
    ("data parallel", 4, 8, 2),
    ("pipeline", 4, 64, 2, 1),
    ("pipeline", 4, 64, 2, 4),
    ("pipeline", 4, 64, 2, 16),
)


def name_of(kind: str, blocks: int, batch: int, processes: int, *micro: int) -> str:
    """Return the name of a run in the results."""
    about = [f"T = {blocks}", f"B = {batch}", *(f"M = {m}" for m in micro)]
    return ", ".join([kind, *about, f"{processes} process{'es' * (processes > 1)}"])


def made(file: Path, kind: str, blocks: int, batch: int, processes: int, *micro: int) -> Contestant:
    """Make the processes of a run."""
    if kind == "data parallel" or processes > blocks:  # all blocks, and a part of the batch
        parts = [{"blocks": blocks, "batch": batch // processes}] * processes
    else:
        dealt = [len(range(i, blocks, processes)) for i in range(processes)]
        about = dict(zip(("batch", "micro_batches"), (batch, *micro), strict=False))
        parts = [{"blocks": n, **about} for n in dealt]
    alone = processes == 1 or (kind == "NoProp fixed" and processes <= blocks)
    return Contestant(KINDS[kind][0], *parts) if alone else together(KINDS[kind][0], file, parts)


def together(
    build: Callable[..., Callable[[int], Any]], file: Path, settings: list[dict[str, Any]]
) -> Contestant:
    """Make processes that find each other by a file, and talk."""
    about = {"file": str(file), "world": len(settings)}
    return Contestant(build, *({**s, **about, "rank": i} for i, s in enumerate(settings)))


def predicted(
    machines: dict[str, Machine], kind: str, blocks: int, batch: int, processes: int, *micro: int
) -> Forecast:
    """Predict a run of one mini-batch, by the constants of one process alone or of two."""
    dim = DIM if kind == "NoProp learned" else CLASSES
    workload = Workload(blocks, PARAMETERS, batch, 1, batch, CLASSES, dim, 0.0, 0.0)
    machine = machines["alone" if processes == 1 else "beside"]
    return KINDS[kind][1](workload, machine, processes, *micro)


# -- measuring -------------------------------------------------------------------------------------


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Measure the constants alone and beside each other, the links', and all runs."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        contestants = {
            "alone": Contestant(build_costs, {"blocks": 4}),
            "beside": Contestant(build_costs, {"blocks": 4}, {"blocks": 4}),
            "links": together(build_links, place / "links", [{}, {}]),
        }
        contestants |= {name_of(*run): made(place / str(i), *run) for i, run in enumerate(RUNS)}
        timings = race(contestants, rounds=rounds, seconds=seconds, progress=await_quiet)
    constants = summary(timings)
    machines = {name: fitted(constants, name) for name in ("alone", "beside")}
    runs = {}
    for run in RUNS:
        forecast = predicted(machines, *run)
        about = {"predicted": forecast.step, "sent": forecast.sent}
        runs[name_of(*run)] = {"measured": spread(timings[name_of(*run)].seconds), **about}
    return {
        "constants": constants,
        "machines": {name: asdict(machine) for name, machine in machines.items()},
        "runs": runs | reductions(constants, machines["beside"]),
    }


def await_quiet(text: str, patience: float = 2.0) -> None:
    """Print a step, and wait until other work leaves nine tenths of the processors (on Linux)."""
    print(text, file=sys.stderr, flush=True)
    began = time.monotonic()
    while time.monotonic() - began < patience:
        before = processor_times()
        time.sleep(0.2)
        idle, total = (b - a for a, b in zip(before, processor_times(), strict=True))
        if idle >= 0.9 * total:
            return


def processor_times() -> tuple[float, float]:
    """Return idle and total time of all processors so far, in ticks; zeros except on Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    ticks = [float(t) for t in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def summary(timings: dict[str, Timing]) -> dict[str, Any]:
    """Return the spread of every constant over rounds; of two processes the mean of both."""
    found: dict[str, Any] = {}
    for name in ("alone", "beside"):
        found[name] = {
            str(batch): {
                part: spread([mean(a[batch][i] for a in row) for row in timings[name].answers])
                for i, part in enumerate(("forward", "backward", "update"))
            }
            for batch in BATCHES
        }
    for kind in ("message", "exchange", "all-reduce"):
        answers = [row[0][kind] for row in timings["links"].answers]  # times of the first process
        found[kind] = {str(size): spread([a[size] for a in answers]) for size in answers[0]}
    return found


# -- predicting ------------------------------------------------------------------------------------


def fitted(constants: dict[str, Any], name: str) -> Machine:
    """Fit lines to a block's seconds over the batch and to a message's over its bytes."""
    cost = constants[name]
    forward, backward = (
        line({batch: parts[part] for batch, parts in cost.items()})
        for part in ("forward", "backward")
    )
    # Both ways at once, as in an all-reduce: on the loopback the two share the cores that copy.
    latency, per_byte = line(constants["exchange"])
    return Machine(
        forward=forward[1],
        backward=backward[1],
        call=forward[0] + backward[0],
        update=median(parts["update"][TAKEN] for parts in cost.values()),
        bandwidth=1 / per_byte,
        latency=latency,
    )


def line(points: dict[str, dict[str, float]]) -> tuple[float, float]:
    """Return offset and slope of the line with the least sum of squared *relative* errors."""
    y = np.array([spread[TAKEN] for spread in points.values()])
    slope, offset = np.polyfit([float(x) for x in points], y, 1, w=1 / y)
    return float(offset), float(slope)


def reductions(constants: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Return all-reduces alone, predicted from the constants of messages."""
    found = {}
    for size in ("800", "400000", "16000000"):
        seconds, sent = all_reduce(2, int(size), machine)
        about = {"predicted": seconds, "sent": sent}
        measured = constants["all-reduce"][size]
        found[f"all-reduce of {int(size):,} bytes"] = {"measured": measured, **about}
    return found


if __name__ == "__main__":
    main()
