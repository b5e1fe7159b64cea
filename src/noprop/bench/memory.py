"""Suite ``memory``: peak memory of training for several numbers of blocks T.

A new process trains every unit for two epochs of two mini-batches, as a worker does. Each value is
its largest resident set, minus that of a process that only imports the package and holds the data:

    python -m noprop.bench.memory MODE BLOCKS DATASET
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from noprop.bench.plain import BATCH
from noprop.bench.settings import Settings
from noprop.bench.suites import Progress, Results, Suite
from noprop.build import build_embedding
from noprop.config import replace
from noprop.data import Examples
from noprop.errors import RunError
from noprop.machine import malloc_keeps_memory, peak_memory
from noprop.report.tables import table
from noprop.run.processes import end_with_parent
from noprop.run.units import groups_of
from noprop.run.worker import Job, train_group
from noprop.training.events import print_nothing

__all__ = ["BLOCKS", "SUITE"]

BLOCKS = (5, 10, 20, 40)
LEARNED = {"method.embedding": "orthogonal", "method.dim": 20, "method.learned": True}
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "dt": ("dt", {}),
    "dt, learned embeddings": ("dt", LEARNED),
    "dt, learned embeddings, offload": ("dt", LEARNED | {"train.offload": True}),
    "backprop": ("backprop", {}),
}
NOTHING = "nothing"


def measure(settings: Settings, results: Results, progress: Progress) -> None:
    """Measure the peak of each way of training, in MB, for T = 5, 10, 20 and 40."""
    base = _peak_of_a_process(NOTHING, 1, settings.dataset)
    rows: dict[str, dict[str, float]] = {}
    counter = peak_memory(torch.device("cpu"))[1]
    about = {"imports_mb": base, "above_imports_mb": rows, "batch": BATCH, "counter": counter}
    results["memory"] = about
    progress("memory: imports")
    for mode in MODES:
        rows[mode] = {}
        for blocks in BLOCKS:
            rows[mode][str(blocks)] = _peak_of_a_process(mode, blocks, settings.dataset) - base
            progress(f"memory {mode}: T = {blocks}")


def _peak_of_a_process(mode: str, blocks: int, dataset: str) -> float:
    # A new interpreter: a forked worker's count starts with pages of the server that it never uses.
    command = [sys.executable, "-m", "noprop.bench.memory", mode, str(blocks), dataset]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed, perhaps for lack of memory"])[-1]
        raise RunError(f"memory of {mode}, T = {blocks}: {last}")
    return float(done.stdout.splitlines()[-1])


def train(mode: str, blocks: int, dataset: str) -> None:
    """Train every unit for two short epochs, one group after the other in this process."""
    torch.set_num_threads(1)
    settings = Settings(dataset=dataset, blocks=blocks)
    method, changes = MODES.get(mode, MODES["dt"])
    config = replace(settings.config(method), {**changes, "train.epochs": 2, "train.threads": 1})
    x, y = settings.data(2 * BATCH)
    embedding = build_embedding(config, settings.task, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weight = embedding.weight.detach()
        parts = Examples(x, y), Examples(x[:0], y[:0])
        job = Job(config, settings.task, folder, "", *parts, weight)
        if mode != NOTHING:
            with malloc_keeps_memory():
                for group in groups_of(config):
                    train_group(job, group, print_nothing)


def text(results: Results) -> str:
    """Return a row for each way of training."""
    found = results["memory"]["above_imports_mb"]
    rows = [[mode, *(f"{mb:,.0f}" for mb in row.values())] for mode, row in found.items()]
    blocks = next(iter(found.values()))
    return table(["peak memory above the imports', MB", *(f"T = {n}" for n in blocks)], rows)


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
    train(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print(peak_memory(torch.device("cpu"))[0])
