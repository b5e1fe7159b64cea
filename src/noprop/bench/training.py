"""Training: a mini-batch of each method, ours against the plain loop, over workers, and its bound.

For NoProp-DT a *turn* is one mini-batch for every block, with a step of the readout beside each;
for the other methods it is one step.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from noprop.bench.contestants import Contestant, race, ratios
from noprop.bench.plain import BATCH, plain_training
from noprop.bench.rates import product_kind
from noprop.bench.roofline import Work, count
from noprop.bench.settings import Settings
from noprop.build import build_embedding, unit_names
from noprop.config import replace
from noprop.data import Examples
from noprop.machine import malloc_keeps_memory
from noprop.run.groups import Job, Material, group_trainer
from noprop.training.events import print_nothing
from noprop.training.loop import GroupTrainer

__all__ = [
    "measure_scaling",
    "measure_training",
    "trainers",
    "worker_counts",
]

EXAMPLES = 4096
Progress = Callable[[str], None]


def measure_training(
    settings: Settings, rates: dict[str, float], found: dict[str, Any], progress: Progress
) -> None:
    """Of each method: images a second of both, how many times as fast ours is, share of the bound.

    NoProp-DT has ``settings.workers`` processes of one thread, other methods one process of as many
    threads; the plain loop has one process, and as many threads as torch takes by itself.
    """
    for method in settings.methods:
        timings = race(
            {"ours": ours(settings, method, settings.workers), "plain": plain(settings, method)},
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
            "plain_threads": timings["plain"].answer[0],
            "operations": work.operations,
            "bytes": work.bytes,
            "bound_seconds": bound,
            "seconds": seconds,
            "share_of_bound": bound / seconds,
            "precision": kind,
        }


def measure_scaling(settings: Settings, found: dict[str, Any], progress: Progress) -> None:
    """NoProp-DT on 1, 2, 4, … workers: images a second, and how many times as fast as on one."""
    timings = race(
        {str(n): ours(settings, "dt", n) for n in worker_counts(settings)},
        rounds=settings.rounds,
        seconds=settings.seconds,
        progress=lambda text: progress(f"workers: {text}"),
    )
    found["workers"] = {
        name: {"images_per_second": t.rate(BATCH), "over_one": ratios(t, timings["1"])}
        for name, t in timings.items()
    }


def worker_counts(settings: Settings) -> list[int]:
    """1, 2, 4, … and the most that NoProp-DT's units can use."""
    most = most_workers(settings, "dt")
    return sorted({1, *(2**k for k in range(20) if 2**k < most), most})


def most_workers(settings: Settings, method: str) -> int:
    """Cores that ours uses of those it may: at most one a unit where there are several."""
    units = len(unit_names(settings.config(method)))
    return settings.workers if units == 1 else min(settings.workers, units)


def ours(settings: Settings, method: str, workers: int) -> Contestant:
    """Training as ``noprop train`` does it: NoProp-DT's units dealt over workers in turn."""
    names = unit_names(settings.config(method))
    common = {"bench": settings.as_dict(), "method": method}
    if len(names) == 1:
        return Contestant(_build_trainers, {**common, "units": names, "threads": workers})
    dealt = [names[i::workers] for i in range(min(workers, len(names)))]
    return Contestant(_build_trainers, *({**common, "units": d, "threads": 1} for d in dealt))


def plain(settings: Settings, method: str) -> Contestant:
    """The plain loop."""
    return Contestant(_build_loop, {"bench": settings.as_dict(), "method": method})


def trainers(settings: Settings, method: str, units: list[str]) -> list[GroupTrainer]:
    """A trainer for each unit, as a worker has it."""
    config = replace(settings.config(method), {"train.threads": 1})
    x, y = settings.data(EXAMPLES)
    weight = build_embedding(config, settings.task, None).weight.detach()
    material = Material(Examples(x, y), Examples(x[:0], y[:0]), weight)
    job = Job(config, settings.task, Path("unused"), "")
    made = [group_trainer(job, material, name, print_nothing) for name in units]
    for trainer in made:
        for unit in trainer.units:
            unit.module.train()
    return made


def turn(made: list[GroupTrainer]) -> None:
    """One mini-batch for each unit; the readout has one beside every block's (Algorithm 1)."""
    for trainer in made:
        for _ in range(trainer.units[0].passes):
            trainer.step()


def _build_trainers(settings: dict[str, Any]) -> Callable[[int], None]:
    torch.set_num_threads(settings["threads"])
    kept = ExitStack()  # as long as the process lives
    kept.enter_context(malloc_keeps_memory())
    made = trainers(Settings(**settings["bench"]), settings["method"], settings["units"])

    def work(units: int, kept: ExitStack = kept) -> None:
        for _ in range(units):
            turn(made)

    return work


def _build_loop(settings: dict[str, Any]) -> Callable[[int], int]:
    bench = Settings(**settings["bench"])
    method = settings["method"]
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
    """Operations and bytes of a turn of ours."""
    config = settings.config(method)
    names = unit_names(config)
    if len(names) == 1:
        (trainer,) = trainers(settings, method, names)
        return count(trainer.step)
    block, readout = trainers(settings, method, [names[0], names[-1]])
    one, beside = count(block.step), count(readout.step)  # every block costs the same
    return Work(
        settings.blocks * (one.operations + beside.operations),
        settings.blocks * (one.bytes + beside.bytes),
    )
