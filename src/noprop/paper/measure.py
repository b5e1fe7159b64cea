"""Training and measurement of one cell with one seed; stopped work is resumed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noprop.config import RunConfig, inference_fields, replace, to_mapping
from noprop.data import SOURCES
from noprop.evaluate import evaluate
from noprop.files import write_whole
from noprop.machine import choose_device, describe_machine, processor_name
from noprop.model import Model, load, open_run
from noprop.paper.cells import EXPERIMENTS, Cell
from noprop.paper.scale import Scale
from noprop.randomness import generator
from noprop.run.assembly import epochs_kept, kept_model
from noprop.run.metrics import append_line, training_cost
from noprop.run.run import Run
from noprop.task import RunData
from noprop.training.events import Emit, Evaluating

__all__ = ["Job", "run_cell"]

ENVIRONMENTS = "environments.jsonl"  # file in the run folder


@dataclasses.dataclass(frozen=True)
class Job:
    """Training of a cell with one seed.

    Attributes:
        cell: Cell to train.
        scale: Scale of the experiment.
        seed: Seed of the run.
        runs: Folder of all run folders.
        data_dir: First folder in which to look for data.
    """

    cell: Cell
    scale: Scale
    seed: int
    runs: Path
    data_dir: Path | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.cell.name}-seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Run folder, in a folder for each scale."""
        return self.runs / self.scale.name / self.name

    @property
    def key(self) -> tuple[str, str, int]:
        """See :func:`noprop.paper.records.key_of`."""
        return self.cell.name, self.scale.name, self.seed


def run_cell(job: Job, emit: Emit) -> dict[str, Any]:
    """Train a cell and measure it; finished parts are not repeated.

    Returns:
        The record; see :mod:`noprop.paper.records`.

    Raises:
        NoPropError: If the cell cannot be trained.
    """
    wanted = job.cell.config(job.scale, job.seed)
    run = Run.join(wanted, job.folder, data_dir=job.data_dir)  # raises if it is another training's
    config, data, model = run.config, run.data, _trained(run, emit)
    emit(Evaluating())
    environment = json.loads(
        (job.folder / "environment.json").read_text(encoding="utf-8")
    ) | _hardware(config)
    only = f"--only {job.cell.name} --scale {job.scale.name}"
    return {
        "cell": job.cell.name,
        **dataclasses.asdict(job.cell),
        "scale": job.scale.name,
        "seed": job.seed,
        "extent": _extent(job.cell, config, data),
        "test": _test(job.folder, config, data, model),
        "train": _train(job.folder, config, data),
        "training": training_cost(job.folder),
        "curve": _curve(job.folder, config, data),
        "config": to_mapping(config),
        "environment": environment,
        "environments": _environments(job.folder),
        "command": f"noprop reproduce {_experiment(job.cell)} {only} --seeds {job.seed}",
    }


def _experiment(cell: Cell) -> str:
    """Return the name of the first experiment that has the cell."""
    return next(name for name, cells in EXPERIMENTS.items() if cell in cells)


def _trained(run: Run, emit: Emit) -> Model:
    """Train and assemble a run if necessary, and load it with the inference of its ``config``."""
    folder = run.folder
    if not (folder / "model.json").is_file() or not (folder / "evaluation.json").is_file():
        here = describe_machine() | _hardware(run.config)
        append_line(folder / ENVIRONMENTS, (json.dumps(here) + "\n").encode())
        run.train(emit=emit)
        run.assemble(emit)
    return _read(folder, run.config)


def _hardware(config: RunConfig) -> dict[str, str]:
    """Return the names of the processor and, if training uses one, of the GPU."""
    names = {"processor": processor_name()}
    device = choose_device(config.train.device)
    return names | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def _environments(folder: Path) -> list[dict[str, Any]]:
    """Return the machines of all processes that trained: a run may be resumed on another."""
    path = folder / ENVIRONMENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _once(path: Path, score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the scores in a file; compute and store them if the file does not exist."""
    if not path.is_file():
        write_whole(path, json.dumps(score()).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def _read(folder: Path, config: RunConfig, **changes: Any) -> Model:
    parts = (name.split(".") for name in inference_fields(config))
    fields = {f"{table}.{name}": getattr(getattr(config, table), name) for table, name in parts}
    fields |= {f"evaluation.{name}": value for name, value in changes.items()}
    return load(folder, overrides=fields)


def _extent(cell: Cell, config: RunConfig, data: RunData) -> dict[str, tuple[int, int]]:
    """Return for each quantity the value of this run, and that of a full result.

    A full result has all training images that are not held out of the published data set. So a run
    on a subset, such as one of Tiny ImageNet's, is not full.
    """
    paper, sizes = cell.recipe, SOURCES[cell.dataset].sizes
    images = round(sizes[0] * (1 - paper.data.validation))
    extent = {
        "epochs": (config.train.epochs, paper.train.epochs),
        "train": (len(data.train), images),
        "test": (len(data.test), sizes[1]),
    }
    if config.method.one_network:
        extent["steps"] = (config.method.chain_length, paper.method.chain_length)
    return extent


def _test(folder: Path, config: RunConfig, data: RunData, model: Model) -> dict[str, Any]:
    """Return the run's own evaluation if it has the configured extent, else a new one."""
    there = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    e = config.evaluation
    as_much = (there["examples"], there["runs"], there["samples"])
    same_chain = open_run(folder).method == config.method and "protocol" not in there
    if same_chain and as_much == (len(data.test), e.runs, e.samples):
        return {k: v for k, v in there.items() if k != "training"}
    return evaluate(model, data.test) | {"part": "test"}


def _train(folder: Path, config: RunConfig, data: RunData) -> dict[str, Any]:
    """Evaluate single chains on as many training images as the test part has."""
    count = min(len(data.train), len(data.test))
    draws = generator(config.train.seed, "train-sample")
    chosen = torch.randperm(len(data.train), generator=draws)[:count].sort().values

    def score() -> dict[str, Any]:
        model = _read(folder, config)
        found = evaluate(model, data.train.take(chosen), modes=["single"])
        return {"examples": count, "runs": found["runs"], **found["modes"]["single"]}

    return _once(folder / "scores" / "train.json", score)


def _curve(folder: Path, config: RunConfig, data: RunData) -> list[dict[str, float | int]]:
    """Return test accuracy in % and seconds of training for each kept copy of the weights."""
    once = replace(config, {"evaluation.runs": 1, "evaluation.samples": 1})
    points = []
    for epoch in epochs_kept(folder, config):

        def score(epoch: int = epoch) -> dict[str, Any]:
            model, seconds = kept_model(folder, once, data, epoch)
            modes = evaluate(model, data.test)["modes"]
            accuracies = {m: modes[m]["accuracy"] for m in ("single", "mean")}
            return {"epoch": epoch, "seconds": seconds, **accuracies}

        points.append(_once(folder / "scores" / f"epoch-{epoch}.json", score))
    return points
