"""The one place where configuration becomes objects: data, networks, units, methods, devices."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from noprop.config import DTConfig, RunConfig
from noprop.data import Examples, Normalization, hold_out, load_dataset
from noprop.embeddings import (
    Embedding,
    class_medoids,
    one_hot_embeddings,
    orthogonal_embeddings,
    random_embeddings,
)
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError
from noprop.methods.dt import DiscreteNoProp
from noprop.networks import DiscreteBlock
from noprop.randomness import derive_seed, generator, seeded
from noprop.readouts import RadialReadout, Readout, SoftmaxReadout
from noprop.schedules import cosine_gamma

__all__ = [
    "RunData",
    "Task",
    "build_embedding",
    "build_method",
    "choose_device",
    "load_data",
    "unit_names",
    "use_bf16",
]


@dataclass(frozen=True)
class Task:
    """What the networks must know of the data: enough to build them without it."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    normalization: Normalization

    @property
    def num_classes(self) -> int:
        """M."""
        return len(self.class_names)


@dataclass(frozen=True)
class RunData:
    """The three parts, and what they say of the task. The test part is for ``evaluate`` alone."""

    task: Task
    train: Examples
    validation: Examples
    test: Examples


def load_data(config: RunConfig, data_dir: Path | None = None) -> RunData:
    """Read, split and measure the data set of a run; pixels stay uint8."""
    c = config.data
    dataset = load_dataset(c.dataset, data_dir=data_dir, image_size=c.image_size, color=c.color)
    parts = hold_out(dataset, c.validation, config.train.seed)
    task = Task(dataset.shape, dataset.class_names, Normalization.of(parts.train.x))
    return RunData(task, parts.train, parts.validation, parts.test)


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: If there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device: {name} cannot be used here: {reason}") from None
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether convolutions and products run in bf16: ``auto`` where there are instructions for it.

    Without them bf16 on a CPU is emulated and several times slower than float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def unit_names(config: RunConfig) -> list[str]:
    """``block-1`` … ``block-T``, ``readout``."""
    return [f"block-{t}" for t in range(1, config.method.num_blocks + 1)] + ["readout"]


def build_embedding(config: RunConfig, task: Task, train: Examples | None) -> Embedding:
    """W_Embed as it is before training.

    Args:
        config: the run.
        task: what is classified.
        train: the training part, in which prototypes are searched; without it they are zeros, to be
            filled from a checkpoint.
    """
    c, seed = config.method, generator(config.train.seed, "embedding")
    if c.embedding == "one-hot":
        return Embedding(one_hot_embeddings(task.num_classes), learned=False)
    if c.embedding == "prototype":
        return Embedding(_prototypes(task, train), learned=c.learned)
    start = orthogonal_embeddings if c.embedding == "orthogonal" else random_embeddings
    return Embedding(start(task.num_classes, c.dim or 20, seed), learned=c.learned)


def _prototypes(task: Task, train: Examples | None) -> Tensor:
    size = torch.Size(task.shape).numel()
    if train is None:
        # Any distinct rows: readouts are built for them and then overwritten.
        return torch.randn(task.num_classes, size, generator=torch.Generator().manual_seed(0))
    rows = []
    for label in range(task.num_classes):
        x = task.normalization.apply(train.x[train.y == label])
        rows.append(x[class_medoids(x, torch.zeros(len(x), dtype=torch.int64), 1)[0]].flatten())
    return torch.stack(rows)


def build_method(
    config: RunConfig,
    task: Task,
    embedding: Embedding,
    *,
    factory: EncoderFactory | None = None,
    only: str | None = None,
) -> DiscreteNoProp:
    """The method of a run, freshly initialised; each unit's start depends on its name alone.

    Args:
        config: the run.
        task: what is classified.
        embedding: W_Embed; the method shares it.
        factory: makes the user's own encoder, for ``method.encoder = "custom"``.
        only: build this unit and leave every other without weights, so that training one block
            needs the memory of one.
    """
    c = config.method
    latent = task.shape if c.embedding == "prototype" else (embedding.weight.shape[1],)

    def block(name: str) -> DiscreteBlock | None:
        if only not in (None, name):
            return None
        with seeded(derive_seed(config.train.seed, "init", block=name)):
            return DiscreteBlock(
                task.shape,
                latent,
                task.num_classes,
                encoder=c.encoder,
                dropout=c.dropout,
                factory=factory,
            )

    try:
        gamma = cosine_gamma(c.num_blocks, offset=c.offset, epsilon=c.epsilon)
        blocks = [block(name) for name in unit_names(config)[:-1]]
    except ValueError as error:
        raise ConfigError(f"method: {error}") from None
    with seeded(derive_seed(config.train.seed, "init", block="readout")):
        readout = _readout(c, embedding.weight.detach())
    return DiscreteNoProp(
        blocks,
        embedding,
        readout,
        gamma,
        eta=c.eta,
        # In Algorithm 1 the readout takes a step beside every block's step.
        readout_passes=c.num_blocks if config.train.order == "sequential" else 1,
    )


def _readout(config: DTConfig, weight: Tensor) -> Readout:
    if config.readout == "softmax":
        return SoftmaxReadout(weight, config.readout_start)
    return RadialReadout(weight, config.readout_start, config.sigma)
