"""Estimates of the time of cells on this machine: a few steps are timed on generated images."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noprop.build import build_embedding
from noprop.config import RunConfig, replace
from noprop.data import SOURCES, Examples, Normalization
from noprop.evaluate import inputs, prepare
from noprop.machine import malloc_keeps_memory
from noprop.model import empty_model, ready
from noprop.paper.cells import Cell
from noprop.paper.measure import Job
from noprop.randomness import generator
from noprop.run.units import groups_of
from noprop.run.worker import Job as GroupJob
from noprop.run.worker import group_trainer
from noprop.task import Task
from noprop.training.events import print_nothing

__all__ = ["Pace", "measure_pace", "rough_work", "seconds_of"]

IMAGES = 512
CHAINS = 200
SHORT = 10  # steps of the chain that is timed instead of a long one
PASSES = 3  # number of timed calls after the first, the fastest of which counts
LONG = 1.0  # seconds of a call for which the first is enough: the start hardly matters


@dataclass(frozen=True)
class Pace:
    """Times of the parts of a cell in one process of one thread, in seconds.

    Attributes:
        batch: Time of a mini-batch for all blocks and the readout.
        features: Time of the features of one image.
        step: Time of one step of a chain for one image.
    """

    batch: float
    features: float
    step: float


def measure_pace(cell: Cell, config: RunConfig) -> Pace:
    """Time a cell's steps on generated images of its data set's shape.

    Args:
        cell: Cell to time.
        config: Configuration with which it is trained.
    """
    source = SOURCES[cell.dataset]
    channels, draws = source.shape[0], torch.Generator().manual_seed(0)
    x = torch.randint(256, (IMAGES, *source.shape), dtype=torch.uint8, generator=draws)
    y = torch.arange(IMAGES) % source.num_classes
    names = tuple(map(str, range(source.num_classes)))
    task = Task(source.shape, names, Normalization((0.5,) * channels, (0.25,) * channels))
    steps = config.method.chain_length
    short = {"method.steps": min(SHORT, steps)} if config.method.one_network else {}
    config = replace(config, {**short, "train.epochs": 1000})
    longer = steps / config.method.chain_length
    with _one_thread():
        batch = _batch(config, task, Examples(x, y))
        features, step = _chain(config, task, x[:CHAINS])
    if config.method.trains_chain:  # a mini-batch is a chain forward and backward
        batch *= longer
    return Pace(batch, features, step)


@contextmanager
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with malloc_keeps_memory():
            yield
    finally:
        torch.set_num_threads(threads)


def _batch(config: RunConfig, task: Task, examples: Examples) -> float:
    """Return the seconds of a mini-batch for every unit; only one of the equal blocks is timed."""
    embedding = build_embedding(config, task, None).weight.detach()
    none = examples.take(torch.arange(0))
    job = GroupJob(config, task, Path("unused"), "", examples, none, embedding)
    total = 0.0
    groups = groups_of(config)
    for group in groups if len(groups) == 1 else [groups[0], groups[-1]]:
        trainer = group_trainer(job, group, print_nothing)
        for unit in trainer.units:
            unit.module.train()
        synchronize = _synchronizer(trainer.device)
        # A step of a block, and one of the readout if it is in the same group. Of a stack an epoch,
        # for its phases have epochs of their own.
        updates = 2 if len(trainer.units) > 1 else 1
        if config.method.stack:
            updates = len(trainer.plan.rows)
            trainer.step()  # the first forward gradient loads modules of torch, for two seconds
        taken = _fastest(lambda t=trainer, n=updates: [t.step() for _ in range(n)], synchronize)
        if config.method.stack:
            total += taken / trainer.plan.batches
        elif len(trainer.units) > 1:  # learned embeddings: one turn for each block
            total += taken * (len(trainer.units) - 1)
        elif group == groups[0]:
            total += taken * max(1, len(groups) - 1)
        else:
            total += taken * trainer.units[0].passes
    return total


def _chain(config: RunConfig, task: Task, x: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of one image's features, and of a step of one chain."""
    model = empty_model(config, task)
    ready(model)
    method, synchronize = model.method, _synchronizer(model.device)
    batch = inputs(model, x)
    prepared = prepare(model, batch)
    features = _fastest(lambda: prepare(model, batch), synchronize)

    def chain() -> None:
        method.predict(batch, generator(0, "unused", device=model.device), prepared=prepared)

    seconds = _fastest(chain, synchronize)
    return features / len(x), seconds / len(x) / config.method.chain_length


def _synchronizer(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _fastest(work: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    def timed() -> float:
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - began

    first = timed()  # allocates memory, and chooses kernels
    return first if first > LONG else min(timed() for _ in range(PASSES))


def seconds_of(job: Job, pace: Pace) -> float:
    """Return the seconds that a job takes: training, and evaluation as in ``measure``."""
    config, amounts = job.cell.config(job.scale, job.seed), _amounts(job)
    training = amounts["batches"] * pace.batch
    image = amounts["images"] * pace.features
    return training + image + amounts["chains"] * config.method.chain_length * pace.step


def rough_work(job: Job) -> float:
    """Return a number that grows with a job's time, by which jobs are ordered without timing."""
    config, amounts = job.cell.config(job.scale, job.seed), _amounts(job)
    c, h, w = SOURCES[job.cell.dataset].shape
    image = float(c + 8) * h * w  # most of the products come after the first layer
    is_image = job.cell.embedding not in ("one-hot", "d20")
    m = config.method
    networks = 1 if m.one_network else m.chain_length
    step = image if is_image else 0.02 * image
    batch = config.train.batch_size * 3 * (image * networks * (1 + is_image))
    if m.one_network and m.trains_chain:
        batch += config.train.batch_size * 6 * step * m.chain_length
    return amounts["batches"] * batch + amounts["chains"] * m.chain_length * step


def _amounts(job: Job) -> dict[str, int]:
    """Return the numbers of mini-batches of training, and of images and chains of evaluation."""
    config, sizes = job.cell.config(job.scale, job.seed), SOURCES[job.cell.dataset].sizes
    held_out = round(sizes[0] * config.data.validation)
    train = min(sizes[0] - held_out, config.data.train_size or sizes[0])
    test = min(sizes[1], config.data.test_size or sizes[1])
    e = config.evaluation
    points = config.train.epochs // config.train.keep_every if config.train.keep_every else 0
    train_scored = min(train, test)
    chains = test * (e.runs * e.samples + 1 + 2 * points) + train_scored * (e.runs + 1)
    return {
        "batches": config.train.epochs * max(1, train // config.train.batch_size),
        "images": test * (1 + points) + train_scored + held_out * (config.train.epochs + 1),
        "chains": chains + held_out * e.samples,
    }
