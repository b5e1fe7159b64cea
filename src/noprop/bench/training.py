"""Suite ``training``: a mini-batch of each method, compared with the plain loop and with a bound.

For NoProp-DT a *turn* is one mini-batch for every block, each with a step of the readout; for the
other methods it is one step.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from noprop.bench.contestants import Contestant, race, ratios
from noprop.bench.display import compared_figure, compared_table
from noprop.bench.plain import BATCH, plain_training
from noprop.bench.rates import product_kind
from noprop.bench.roofline import Work, count
from noprop.bench.settings import Settings
from noprop.bench.suites import Progress, Results, Suite
from noprop.build import build_embedding
from noprop.config import replace
from noprop.data import Examples
from noprop.machine import malloc_keeps_memory
from noprop.run.worker import Job, group_trainer
from noprop.training.events import print_nothing
from noprop.training.trainer import Trainer

__all__ = ["SUITE", "count_turn", "most_workers", "ours"]

EXAMPLES = 4096


def measure(settings: Settings, results: Results, progress: Progress) -> None:
    """Measure images per second of both, their ratio, and the share of the bound that ours has.

    NoProp-DT has ``settings.workers`` processes of one thread, other methods one process of as many
    threads. The plain loop has one process, and as many threads as torch takes by default.
    """
    rates = results["rates"]
    found = results["training"] = {}
    for method in settings.methods:
        timings = race(
            {
                "ours": ours(settings, method, settings.workers),
                "plain": Contestant(_build_plain, {"bench": settings, "method": method}),
            },
            rounds=settings.rounds,
            seconds=settings.seconds,
            progress=lambda text, method=method: progress(f"training {method}: {text}"),
        )
        work, kind = count_turn(settings, method), product_kind()
        # The rates are of all workers; a chain of few blocks may not use as many.
        used = min(1.0, most_workers(settings, method) / settings.workers)
        bound = work.bound(rates[kind] * used, rates["copy"] * used)
        seconds = BATCH / timings["ours"].rate(BATCH)["median"]
        found[method] = {
            "images_per_second": {name: t.rate(BATCH) for name, t in timings.items()},
            "ours_over_plain": ratios(timings["ours"], timings["plain"]),
            "plain_threads": timings["plain"].answers[-1][0],
            "operations": work.operations,
            "bytes": work.bytes,
            "bound_seconds": bound,
            "seconds": seconds,
            "share_of_bound": bound / seconds,
            "precision": kind,
        }


def most_workers(settings: Settings, method: str) -> int:
    """Return the workers that ours can use: at most one for each unit if there are several."""
    units = len(settings.config(method).method.unit_names)
    return settings.workers if units == 1 else min(settings.workers, units)


def ours(settings: Settings, method: str, workers: int) -> Contestant:
    """Return the training of ``noprop train``: NoProp-DT's units are dealt to workers in turn."""
    names = settings.config(method).method.unit_names
    common = {"bench": settings, "method": method}
    if len(names) == 1:
        return Contestant(_build_ours, {**common, "units": names, "threads": workers})
    dealt = [names[i::workers] for i in range(min(workers, len(names)))]
    return Contestant(_build_ours, *({**common, "units": d, "threads": 1} for d in dealt))


def _build_ours(
    bench: Settings, method: str, units: list[str], threads: int
) -> Callable[[int], None]:
    torch.set_num_threads(threads)
    kept = ExitStack()  # as long as the process lives
    kept.enter_context(malloc_keeps_memory())
    made = trainers(bench, method, units)

    def work(turns: int, kept: ExitStack = kept) -> None:
        for _ in range(turns):
            for trainer in made:
                # The readout does a step with every block's step (Algorithm 1).
                for _ in range(trainer.units[0].passes):
                    trainer.step()

    return work


def trainers(settings: Settings, method: str, units: list[str]) -> list[Trainer]:
    """Build a trainer for each unit, as a worker does."""
    config = replace(settings.config(method), {"train.threads": 1})
    x, y = settings.data(EXAMPLES)
    weight = build_embedding(config, settings.task, None).weight.detach()
    parts = Examples(x, y), Examples(x[:0], y[:0])
    job = Job(config, settings.task, Path("unused"), "", *parts, weight)
    made = [group_trainer(job, name, print_nothing) for name in units]
    for trainer in made:
        for unit in trainer.units:
            unit.module.train()
    return made


def _build_plain(bench: Settings, method: str) -> Callable[[int], int]:
    steps = bench.solver_steps if method == "adjoint" else bench.blocks
    step, _ = plain_training(method, bench.shape, bench.classes, steps)
    x, y = bench.data(EXAMPLES)

    def work(units: int) -> int:
        for _ in range(units):
            chosen = torch.randint(EXAMPLES, (BATCH,))
            step((x[chosen].float() / 255 - 0.5) / 0.25, y[chosen])
        return torch.get_num_threads()

    return work


def count_turn(settings: Settings, method: str) -> Work:
    """Count the operations and bytes of a turn of ours."""
    names = settings.config(method).method.unit_names
    if len(names) == 1:
        (trainer,) = trainers(settings, method, names)
        return count(trainer.step)
    block, readout = trainers(settings, method, [names[0], names[-1]])
    one, beside = count(block.step), count(readout.step)  # every block costs the same
    return Work(
        settings.blocks * (one.operations + beside.operations),
        settings.blocks * (one.bytes + beside.bytes),
    )


def text(results: Results) -> str:
    """Return the comparison with the plain loop."""
    found = results["training"]
    *_, row = found.values()
    threads = row["plain_threads"]
    return (
        "training: one mini-batch, for every block where there are several\n"
        f"ours in {row['precision']} on all workers, "
        f"plain float32 on {threads} thread{'s' * (threads > 1)}\n{compared_table(found)}"
    )


def roofline(figure: Any, results: Results) -> None:
    """Draw operations per second against operations per byte, under the machine's two bounds."""
    axes, rates = figure.subplots(), results["rates"]
    copy = rates["copy"]
    points = {
        method: (row["operations"] / row["bytes"], row["operations"] / row["seconds"])
        for method, row in results["training"].items()
    }
    least = min(x for x, _ in points.values()) / 4
    greatest = max(max(x for x, _ in points.values()), max(rates.values()) / copy) * 4
    for kind, rate in rates.items():
        if kind != "copy":
            knee = rate / copy
            axes.plot([least, knee, greatest], [least * copy, rate, rate], label=f"bound, {kind}")
    for method, (x, y) in points.items():
        axes.plot(x, y, "o", color="black")
        axes.annotate(method, (x, y), xytext=(6, -4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("operations per second")
    axes.set_title("training under the roofline")
    axes.legend()


SUITE = Suite(
    steps=lambda settings: len(settings.methods) * settings.race_steps(2),
    measure=measure,
    table=text,
    figures={
        "training-speed": lambda f, results: compared_figure(f, results["training"], "training"),
        "roofline": roofline,
    },
)
