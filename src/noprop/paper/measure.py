"""One cell with one seed: it is trained, or taken up where it was stopped, and measured."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noprop import api
from noprop.build import RunData, choose_device, unit_names
from noprop.config import RunConfig, inference_fields, replace, to_mapping
from noprop.data import SOURCES
from noprop.evaluate import evaluate
from noprop.files import write_whole
from noprop.machine import describe_machine, processor_name
from noprop.paper.cells import EXPERIMENTS, Cell
from noprop.paper.scale import Scale
from noprop.randomness import generator
from noprop.run.assembly import epochs_kept, kept_model
from noprop.run.metrics import append_line, training_cost
from noprop.trained_model import TrainedModel
from noprop.training.events import Emit, Evaluating

__all__ = ["Job", "run_cell"]

ENVIRONMENTS = "environments.jsonl"  # in a run


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell to train with one seed.

    Attributes:
        cell: it.
        scale: of it.
        seed: of the run.
        runs: where run folders are.
        data_dir: the first place to look for data.
    """

    cell: Cell
    scale: Scale
    seed: int
    runs: Path
    data_dir: Path | None = None

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.cell.name}-seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """The run; those of one scale are together."""
        return self.runs / self.scale.name / self.name

    @property
    def key(self) -> tuple[str, str, int]:
        """See :func:`noprop.paper.records.key_of`."""
        return self.cell.name, self.scale.name, self.seed


def run_cell(job: Job, emit: Emit) -> dict[str, Any]:
    """Train a cell, and measure it; whatever of it is done already is not done again.

    Returns:
        Its line, see :mod:`noprop.paper.records`.

    Raises:
        NoPropError: If it cannot be trained.
    """
    wanted = job.cell.config(job.scale, job.seed)
    config, data = api.prepare_run(wanted, None, job.data_dir)
    config = api.join(job.folder, config, data)  # or is it of another training?
    model = _trained(job.folder, config, data, emit)
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
    """The first that has it."""
    return next(name for name, cells in EXPERIMENTS.items() if cell in cells)


def _trained(folder: Path, config: RunConfig, data: RunData, emit: Emit) -> TrainedModel:
    """The finished run, read as ``config`` says."""
    if not (folder / "model.json").is_file() or not (folder / "evaluation.json").is_file():
        here = describe_machine() | _hardware(config)
        append_line(folder / ENVIRONMENTS, (json.dumps(here) + "\n").encode())
        api.train_units(folder, unit_names(config), config, data=data, emit=emit)
        api.assemble(folder, data=data, emit=emit)
    return _read(folder, config)


def _hardware(config: RunConfig) -> dict[str, str]:
    """Names of the processor, and of the GPU where one trains."""
    names = {"processor": processor_name()}
    device = choose_device(config.train.device)
    return names | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def _environments(folder: Path) -> list[dict[str, Any]]:
    """Those of all processes that trained, one after another: a run may go on elsewhere."""
    path = folder / ENVIRONMENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _once(path: Path, score: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found before, or is now: scoring may be stopped, and finished parts are kept."""
    if not path.is_file():
        write_whole(path, json.dumps(score()).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def _read(folder: Path, config: RunConfig, **changes: Any) -> TrainedModel:
    parts = (name.split(".") for name in inference_fields(config))
    fields = {f"{table}.{name}": getattr(getattr(config, table), name) for table, name in parts}
    fields |= {f"evaluation.{name}": value for name, value in changes.items()}
    return api.load(folder, overrides=fields)


def _extent(cell: Cell, config: RunConfig, data: RunData) -> dict[str, tuple[int, int]]:
    """What was taken, and what the whole is.

    The whole is all that are not held out of the data set as published; so a part of it, such as
    one of Tiny ImageNet's, shows.
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


def _test(folder: Path, config: RunConfig, data: RunData, model: TrainedModel) -> dict[str, Any]:
    """The evaluation that the run has, if it is of as much as is wanted; else a new one."""
    there = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    e = config.evaluation
    as_much = (there["examples"], there["runs"], there["samples"])
    same_chain = api.open_run(folder).method == config.method
    if same_chain and as_much == (len(data.test), e.runs, e.samples):
        return {k: v for k, v in there.items() if k != "training"}
    return evaluate(model.model, data.test) | {"part": "test"}


def _train(folder: Path, config: RunConfig, data: RunData) -> dict[str, Any]:
    """Accuracy of single chains on as many training images as the test part has."""
    count = min(len(data.train), len(data.test))
    draws = generator(config.train.seed, "train-sample")
    chosen = torch.randperm(len(data.train), generator=draws)[:count].sort().values

    def score() -> dict[str, Any]:
        found = evaluate(_read(folder, config, samples=1).model, data.train.take(chosen))
        return {"examples": count, "runs": found["runs"], **found["modes"]["single"]}

    return _once(folder / "scores" / "train.json", score)


def _curve(folder: Path, config: RunConfig, data: RunData) -> list[dict[str, float | int]]:
    """Test accuracy in % and seconds of training, of each copy of the weights that was kept."""
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
