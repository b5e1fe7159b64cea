"""Suite ``memory``: peak memory and time of training for several numbers of blocks T.

A new process trains every unit for two epochs of four mini-batches, as a worker does, but writes no
checkpoints. Its memory is the largest resident set, minus that of a process that only imports the
package and holds the data. Its time is that of the processor in the updates of the second epoch, on
one thread:

    python -m noprop.bench.memory MODE BLOCKS DATASET

Back-propagation is measured in three ways: as it is, with activation checkpointing, and with its
gradient accumulated over parts of a mini-batch.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from noprop.bench.plain import BATCH
from noprop.bench.settings import Settings
from noprop.bench.suites import Progress, Results, Suite
from noprop.build import build_embedding
from noprop.config import replace
from noprop.data import Examples
from noprop.errors import RunError
from noprop.machine import malloc_keeps_memory, peak_memory
from noprop.methods.backprop import ChainUnit
from noprop.methods.base import LossTerms, Unit
from noprop.networks import DiscreteBlock
from noprop.report.tables import table
from noprop.run.processes import end_with_parent
from noprop.run.units import groups_of
from noprop.run.worker import Job, group_trainer
from noprop.training.events import print_nothing
from noprop.training.plan import Update

__all__ = ["BLOCKS", "SUITE", "accumulate", "recompute"]

BLOCKS = (5, 10, 20, 40)
BATCHES = 4  # of an epoch
PARTS = 8  # of a mini-batch whose gradient is accumulated
LEARNED = {"method.embedding": "orthogonal", "method.dim": 20, "method.learned": True}
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "dt": ("dt", {}),
    "dt, learned embeddings": ("dt", LEARNED),
    "dt, learned embeddings, offload": ("dt", LEARNED | {"train.offload": True}),
    "backprop": ("backprop", {}),
    "backprop, activation checkpointing": ("backprop", {}),
    f"backprop, {PARTS} parts of a mini-batch": ("backprop", {}),
}
NOTHING = "nothing"


def measure(settings: Settings, results: Results, progress: Progress) -> None:
    """Measure the peak in MB, and the seconds of a mini-batch, for T = 5, 10, 20 and 40."""
    base, _ = _costs_of_a_process(NOTHING, 1, settings.dataset)
    rows: dict[str, dict[str, float]] = {}
    times: dict[str, dict[str, float]] = {}
    counter = peak_memory(torch.device("cpu"))[1]
    about = {"imports_mb": base, "above_imports_mb": rows, "batch": BATCH, "counter": counter}
    results["memory"] = about | {"seconds": times}
    progress("memory: imports")
    for mode in MODES:
        rows[mode], times[mode] = {}, {}
        for blocks in BLOCKS:
            peak, seconds = _costs_of_a_process(mode, blocks, settings.dataset)
            rows[mode][str(blocks)], times[mode][str(blocks)] = peak - base, seconds
            progress(f"memory {mode}: T = {blocks}")


def _costs_of_a_process(mode: str, blocks: int, dataset: str) -> tuple[float, float]:
    # A new interpreter: a forked worker's count starts with pages of the server that it never uses.
    command = [sys.executable, "-m", "noprop.bench.memory", mode, str(blocks), dataset]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed, perhaps for lack of memory"])[-1]
        raise RunError(f"memory of {mode}, T = {blocks}: {last}")
    peak, seconds = done.stdout.splitlines()[-1].split()
    return float(peak), float(seconds)


def train(mode: str, blocks: int, dataset: str) -> float:
    """Train every unit for two short epochs, one group after the other in this process.

    Returns:
        Processor seconds of a mini-batch in every unit.
    """
    torch.set_num_threads(1)
    settings = Settings(dataset=dataset, blocks=blocks)
    method, changes = MODES.get(mode, MODES["dt"])
    config = replace(settings.config(method), {**changes, "train.epochs": 2, "train.threads": 1})
    x, y = settings.data(BATCHES * BATCH)
    embedding = build_embedding(config, settings.task, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weight = embedding.weight.detach()
        parts = Examples(x, y), Examples(x[:0], y[:0])
        job = Job(config, settings.task, folder, "", *parts, weight)
        if mode == NOTHING:
            return 0.0
        with malloc_keeps_memory():
            return sum(_train_group(mode, job, group) for group in groups_of(config))


def _train_group(mode: str, job: Job, group: str) -> float:
    """Train a group without checkpoints, which a large unit needs more memory for than for steps.

    Parked blocks need them, so ``offload`` has them.
    """
    trainer = group_trainer(job, group, print_nothing)
    for unit in trainer.units:
        if isinstance(unit, ChainUnit) and "checkpointing" in mode:
            recompute(unit)
        if "parts" in mode:
            accumulate(unit, PARTS)
    seconds: list[float] = []
    step = trainer.step

    def timed() -> tuple[Update, LossTerms]:
        began = time.process_time()
        made = step()
        seconds.append(time.process_time() - began)
        return made

    if job.config.train.offload:
        trainer.step = timed
        trainer.run()
        del trainer.step  # a cycle of references would keep the trainer in memory
    else:
        for unit in trainer.units:
            unit.module.train()
        while not trainer.is_finished:
            timed()
    return sum(seconds[len(seconds) // 2 :]) / BATCHES


# -- back-propagation with less memory -------------------------------------------------------------


class _Recomputed:
    """A block whose backward pass computes its activations again.

    The seed of its dropout is drawn first, so that both passes drop the same features. Running
    statistics of batch norm are updated in both.
    """

    def __init__(self, block: DiscreteBlock):
        self.block = block

    def context(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x: its features are computed in the checkpointed call."""
        del generator
        return x

    def __call__(self, z: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the block's logits."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))

        def run(z: Tensor, x: Tensor) -> Tensor:
            draws = torch.Generator(generator.device).manual_seed(seed)
            return self.block(z, self.block.context(x, draws), draws)

        made = checkpoint(run, z, x, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(made, Tensor)
        return made


def recompute(unit: ChainUnit) -> None:
    """Make a chain keep no activations but the latents between its blocks."""
    unit.blocks = [_Recomputed(block) for block in unit.blocks]  # pyright: ignore[reportAttributeAccessIssue]


def accumulate(unit: Unit, parts: int) -> None:
    """Make a unit's loss add the gradients of all parts of a mini-batch but the last.

    That of the last is left to the caller. Each part has a batch norm of its own.
    """
    whole = unit.loss

    def loss(x: Tensor, y: Tensor, generator: torch.Generator) -> LossTerms:
        *first, last = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
        for part in first:
            _share(whole(*part, generator), len(part[1]) / len(y)).total.backward()
        return _share(whole(*last, generator), len(last[1]) / len(y))

    unit.loss = loss


def _share(terms: LossTerms, weight: float) -> LossTerms:
    return LossTerms({name: weight * term for name, term in terms.terms.items()})


# -- results ---------------------------------------------------------------------------------------


def text(results: Results) -> str:
    """Return a row for each way of training."""
    found, times = results["memory"]["above_imports_mb"], results["memory"].get("seconds", {})
    rows = []
    for mode, row in found.items():
        seconds = [f"{s:.2f}" for s in list(times.get(mode, {}).values())[-1:]]
        rows.append([mode, *(f"{mb:,.0f}" for mb in row.values()), *seconds])
    blocks = list(next(iter(found.values())))
    last = [f"core-s a mini-batch, T = {blocks[-1]}"] * bool(times)
    head = ["peak memory above the imports', MB", *(f"T = {n}" for n in blocks), *last]
    return table(head, rows)


def figure(figure: Any, results: Results) -> None:
    """Draw the peak over the number of blocks."""
    axes = figure.subplots()
    for mode, row in results["memory"]["above_imports_mb"].items():
        axes.plot([int(n) for n in row], list(row.values()), "o-", label=mode)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("blocks T")
    axes.set_ylabel("MB above the imports")
    axes.set_title("peak memory of training")
    axes.legend()


SUITE = Suite(
    steps=lambda settings: 1 + len(MODES) * len(BLOCKS),
    measure=measure,
    table=text,
    figures={"memory": figure},
)

if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    taken = train(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print(peak_memory(torch.device("cpu"))[0], taken)
