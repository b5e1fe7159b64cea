"""T blocks on P machines on paper (docs/scaling.md), checked against small runs on this machine.

    python studies/scaling.py measure                # constants and runs: results/scaling.json
    python studies/scaling.py check                  # predicted beside measured
    python studies/scaling.py predict                # hours and traffic, MNIST's block
    python studies/scaling.py predict --workload large --mtbf-hours inf 50700
    python studies/scaling.py predict --blocks 40 --machines 8 --gbit 10 --mtbf-hours 1000
    python studies/scaling.py figures                # docs/images/scaling-*.png

The runs are of two processes of one thread each, which talk over the loopback.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noprop.bench.contestants import Contestant
from noprop.machine import describe_machine
from scaling_model.cluster import Machine, Workload, all_reduce
from scaling_model.forecast import Forecast
from scaling_model.methods import data_parallel, noprop_fixed, noprop_learned, pipeline
from scaling_runs import (
    BATCHES,
    CLASSES,
    DIM,
    Work,
    build_costs,
    build_data_parallel,
    build_learned,
    build_links,
    build_noprop,
    build_pipeline,
    split,
)
from scaling_tables import check_table, constants_table, draw_figures, predict_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "scaling.json"
IMAGES = ROOT / "docs" / "images"
PARAMETERS = 919_946  # of MNIST's block, Table 5
# Of a constant over rounds: other work on a shared machine only ever adds to a time.
TAKEN = "least"

Rounds = dict[str, tuple[list[float], list[list[Any]]]]


def main() -> None:
    """Measure, compare or predict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "check", "predict", "figures"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a run in a round, about")
    parser.add_argument("--workload", choices=("small", "large"), default="small")
    parser.add_argument("--blocks", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--gbit", type=float, nargs="+", default=[1.0, 100.0])
    parser.add_argument("--mtbf-hours", type=float, nargs="+", default=[math.inf, 24.0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.what == "measure":
        found = measure(given.rounds, given.seconds)
        found["command"] = "python studies/scaling.py " + " ".join(sys.argv[1:])
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(given.out.read_text())
    if given.what in ("measure", "check"):
        print(constants_table(found), check_table(found), sep="\n\n")
    elif given.what == "predict":
        many = given.blocks, given.machines, given.gbit, given.mtbf_hours
        print(predict_text(found, given.workload, *many))
    else:
        print(*draw_figures(found, IMAGES), sep="\n")


# -- measuring -------------------------------------------------------------------------------------


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Constants alone and beside each other, the links', and all runs, predicted and measured."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        contestants = {
            "alone": Contestant(build_costs, {"blocks": 4}),
            "beside": Contestant(build_costs, {"blocks": 4}, {"blocks": 4}),
            "links": together(build_links, place / "links", [{}, {}]),
        }
        for i, (name, (made, _)) in enumerate(RUNS.items()):
            contestants[name] = made(place / str(i))
        rows = alternate(contestants, rounds, seconds)
    found: dict[str, Any] = {"machine": describe_machine(), "rounds": rounds}
    found["constants"] = summary(rows)
    machines = {n: fitted(found["constants"], n) for n in ("alone", "beside")}
    found["machines"] = {n: asdict(m) for n, m in machines.items()}
    found["runs"] = {}
    for name, (_, forecast) in RUNS.items():
        predicted = forecast(machines)
        about = {"predicted": predicted.step, "sent": predicted.sent}
        found["runs"][name] = {"measured": spread(rows[name][0]), **about}
    found["runs"] |= reductions(found["constants"], machines["beside"])
    return found


def together(build: Callable[..., Work], file: Path, settings: list[dict[str, Any]]) -> Contestant:
    """Processes that find each other by a file; one alone has no group."""
    about = {"file": str(file), "world": len(settings)} if len(settings) > 1 else {}
    return Contestant(build, *({**s, **about, "rank": i} for i, s in enumerate(settings)))


def alternate(contestants: dict[str, Contestant], rounds: int, seconds: float) -> Rounds:
    """Seconds of a unit of work in every round, and every round's answers; one runs at a time."""
    found: Rounds = {name: ([], []) for name in contestants}
    try:
        units = {}
        for name, contestant in contestants.items():
            contestant.run(1)
            units[name] = max(1, round(seconds / contestant.run(1)[0]))
        for number in range(rounds):
            for name, contestant in contestants.items():
                await_quiet()
                taken, answers = contestant.run(units[name])
                found[name][0].append(taken / units[name])
                found[name][1].append(answers)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for contestant in contestants.values():
            contestant.close()
    return found


def await_quiet(patience: float = 2.0) -> None:
    """Wait until other work leaves nine tenths of the processors alone (on Linux), or give up."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        before = processor_times()
        time.sleep(0.2)
        idle, total = (b - a for a, b in zip(before, processor_times(), strict=True))
        if idle >= 0.9 * total:
            return


def processor_times() -> tuple[float, float]:
    """Idle and all time of all processors so far, in the system's ticks; nothing elsewhere."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    ticks = [float(t) for t in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def summary(constants: Rounds) -> dict[str, Any]:
    """Of every constant its spread over rounds; of two processes the mean of both."""
    found: dict[str, Any] = {}
    for name in ("alone", "beside"):
        answers = constants[name][1]
        found[name] = {
            str(batch): {
                part: spread([statistics.mean(a[batch][i] for a in row) for row in answers])
                for i, part in enumerate(("forward", "backward", "update"))
            }
            for batch in BATCHES
        }
    for kind in ("message", "exchange", "all-reduce"):
        answers = [row[0][kind] for row in constants["links"][1]]  # the first process has the time
        found[kind] = {str(size): spread([a[size] for a in answers]) for size in answers[0]}
    return found


# -- predicting ------------------------------------------------------------------------------------


def fitted(constants: dict[str, Any], name: str) -> Machine:
    """Lines through a block's seconds over the batch and a message's over its bytes."""
    cost = constants[name]
    batches = [float(b) for b in cost]
    offset = {}
    slope = {}
    for part in ("forward", "backward"):
        values = [cost[b][part][TAKEN] for b in cost]
        offset[part], slope[part] = line(batches, values)
    # Both ways at once, as in an all-reduce: on the loopback the two share the cores that copy.
    sizes = constants["exchange"]
    latency, per_byte = line([float(s) for s in sizes], [sizes[s][TAKEN] for s in sizes])
    return Machine(
        forward=slope["forward"],
        backward=slope["backward"],
        call=offset["forward"] + offset["backward"],
        update=statistics.median(cost[b]["update"][TAKEN] for b in cost),
        bandwidth=1 / per_byte,
        latency=latency,
    )


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Offset and slope of the line with the least sum of squared *relative* errors."""
    weights = [1 / v**2 for v in y]
    total = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weights, y, strict=True)) / total
    slope = sum(
        w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, y, strict=True)
    ) / sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    return mean_y - slope * mean_x, slope


def small(blocks: int, batch: int, dim: int = CLASSES) -> Workload:
    """One mini-batch an epoch; of the fields only those that a step depends on."""
    return Workload(blocks, PARAMETERS, batch, 1, batch, CLASSES, dim, 0.0, 0.0)


def reductions(constants: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """All-reduces alone, by the constants of messages."""
    found = {}
    for size in ("800", "400000", "16000000"):
        seconds, sent = all_reduce(2, int(size), machine)
        name = f"all-reduce of {int(size):,} bytes"
        found[name] = {"measured": constants["all-reduce"][size], "predicted": seconds}
        found[name]["sent"] = sent
    return found


Run = tuple[Callable[[Path], Contestant], Callable[[dict[str, Machine]], Forecast]]


def fixed_run(blocks: int, batch: int, machines: int) -> Run:
    """NoProp with fixed embeddings; one block on two machines is trained by both."""

    def made(file: Path) -> Contestant:
        if machines > blocks:
            part = {"blocks": blocks, "batch": batch // machines}
            return together(build_noprop, file, [part] * machines)
        parts = [{"blocks": n, "batch": batch} for n in split(blocks, machines)]
        return Contestant(build_noprop, *parts)  # they never talk

    return made, lambda found: noprop_fixed(small(blocks, batch), of(found, machines), machines)


def learned_run(blocks: int, batch: int, machines: int) -> Run:
    """NoProp with learned embeddings."""
    parts = [{"blocks": n, "batch": batch} for n in split(blocks, machines)]
    work = small(blocks, batch, DIM)
    return (
        lambda file: together(build_learned, file, parts),
        lambda found: noprop_learned(work, of(found, machines), machines),
    )


def data_run(blocks: int, batch: int, machines: int) -> Run:
    """Data-parallel backprop; no overlap, for the cores that would send are those that compute."""
    parts = [{"blocks": blocks, "batch": batch // machines}] * machines
    return (
        lambda file: together(build_data_parallel, file, parts),
        lambda found: data_parallel(small(blocks, batch), of(found, machines), machines),
    )


def pipeline_run(blocks: int, batch: int, micro_batches: int) -> Run:
    """Two stages."""
    about = {"batch": batch, "micro_batches": micro_batches}
    parts = [{"blocks": n, **about} for n in split(blocks, 2)]
    return (
        lambda file: together(build_pipeline, file, parts),
        lambda found: pipeline(small(blocks, batch), found["beside"], 2, micro_batches),
    )


def of(found: dict[str, Machine], machines: int) -> Machine:
    """The constants of a process alone, or of two beside each other."""
    return found["alone" if machines == 1 else "beside"]


RUNS: dict[str, Run] = {
    "NoProp fixed, T = 4, B = 64, 1 process": fixed_run(4, 64, 1),
    "NoProp fixed, T = 4, B = 64, 2 processes": fixed_run(4, 64, 2),
    "NoProp fixed, T = 3, B = 64, 2 processes": fixed_run(3, 64, 2),
    "NoProp fixed, T = 1, B = 64, 2 processes": fixed_run(1, 64, 2),
    "NoProp fixed, T = 1, B = 8, 2 processes": fixed_run(1, 8, 2),
    "NoProp learned, T = 4, B = 64, 1 process": learned_run(4, 64, 1),
    "NoProp learned, T = 4, B = 64, 2 processes": learned_run(4, 64, 2),
    "NoProp learned, T = 4, B = 8, 2 processes": learned_run(4, 8, 2),
    "data parallel, T = 4, B = 64, 1 process": data_run(4, 64, 1),
    "data parallel, T = 4, B = 64, 2 processes": data_run(4, 64, 2),
    "data parallel, T = 4, B = 8, 2 processes": data_run(4, 8, 2),
    "pipeline, T = 4, B = 64, M = 1, 2 processes": pipeline_run(4, 64, 1),
    "pipeline, T = 4, B = 64, M = 4, 2 processes": pipeline_run(4, 64, 4),
    "pipeline, T = 4, B = 64, M = 16, 2 processes": pipeline_run(4, 64, 16),
}


if __name__ == "__main__":
    main()
