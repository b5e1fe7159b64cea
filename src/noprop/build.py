"""The one place where a configuration becomes objects: embeddings, values for ``auto``, methods.

:mod:`noprop.task` reads the data, :mod:`noprop.parts` makes networks, and :mod:`noprop.builders`
has a function for each method.
"""

import math
from typing import Any

import torch
from torch import Tensor

from noprop.builders import BUILDERS
from noprop.chain_settings import MAX_ABS_GAMMA, LatentConfig
from noprop.config import RunConfig, replace
from noprop.data import Examples
from noprop.embeddings import (
    Embedding,
    class_medoids,
    greatest_distance,
    one_hot_embeddings,
    orthogonal_embeddings,
    random_embeddings,
    separation,
)
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, DataError
from noprop.methods.base import Method
from noprop.parts import Parts, image_path
from noprop.randomness import generator
from noprop.task import Task

__all__ = ["build_embedding", "build_method", "resolve_auto", "resolve_layers"]


def build_embedding(config: RunConfig, task: Task, train: Examples | None) -> Embedding:
    """Return W_Embed as it is before training.

    Args:
        config: The run.
        task: The task.
        train: The training part, from which prototypes are chosen; without it prototypes are
            random, to be filled from a checkpoint.

    Raises:
        ConfigError: If two classes get the same embedding, for then no latent tells them apart.
        DataError: If the reason is that two prototypes are the same image.
    """
    c, seed = config.method, generator(config.train.seed, "embedding")
    if c.embedding == "one-hot":
        return Embedding(one_hot_embeddings(task.num_classes), learned=False)
    assert isinstance(c, LatentConfig)
    if c.embedding == "prototype":
        weight = _prototypes(task, train)
        if pair := _equal_rows(weight):
            a, b = (task.class_names[i] for i in pair)
            raise DataError(
                f"method.embedding: two classes have the same embedding: the prototypes of {a} and "
                f"{b} are the same example; learn from another start, or mend the data"
            )
        return Embedding(weight, learned=c.learned)
    start = orthogonal_embeddings if c.embedding == "orthogonal" else random_embeddings
    dim = c.dim or 20
    weight = start(task.num_classes, dim, seed) * _norm(c, task, train)
    if _equal_rows(weight):
        raise ConfigError(
            f"method.dim: two classes have the same embedding: {task.num_classes} {c.embedding} "
            f"embeddings do not fit into {dim} dimension{'s' * (dim > 1)}"
        )
    return Embedding(weight, learned=c.learned)


def _norm(c: LatentConfig, task: Task, train: Examples | None) -> float:
    if c.embedding_norm == "prototype":
        return _prototypes(task, train).norm(dim=1).mean().item()
    return c.embedding_norm


def _equal_rows(weight: Tensor) -> tuple[int, int] | None:
    """Return two rows that are equal in float32, or None."""
    lengths, least = separation(weight)
    if least > 1e-6 * float(lengths.max()):
        return None
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    return divmod(int(distances.fill_diagonal_(torch.inf).argmin()), len(weight))


def _prototypes(task: Task, train: Examples | None) -> Tensor:
    size = torch.Size(task.shape).numel()
    if train is None:
        # Any distinct rows: readouts are built for them and then overwritten.
        return torch.randn(task.num_classes, size, generator=torch.Generator().manual_seed(0))
    rows = []
    for label in range(task.num_classes):
        x = task.normalization.apply(train.x[train.y == label])
        if len(x) == 0:
            raise DataError(
                f"method.embedding: {task.class_names[label]} has no training example to make a "
                "prototype of; train on more"
            )
        rows.append(x[class_medoids(x, torch.zeros(len(x), dtype=torch.int64), 1)[0]].flatten())
    return torch.stack(rows)


def resolve_auto(config: RunConfig, embedding: Embedding) -> RunConfig:
    """Return the configuration with a value for each ``auto`` of its method.

    The paper gives no γ(0). Here it is 6 + log of the greatest squared distance between two
    embeddings, so that z_0 does not tell the label whatever their length. The readout starts at
    random with learned embeddings, as in the paper: one that classifies them from the beginning
    has no gradient that keeps them apart, and the denoising losses draw them together.

    Args:
        config: The run.
        embedding: W_Embed before training.

    Raises:
        ConfigError: If the embeddings are too far apart or too close for any allowed γ.
    """
    c, changes = config.method, dict[str, Any]()
    if "readout_start" in c.auto_fields:
        changes["method.readout_start"] = "random" if c.learned else "nearest"
    for name, gamma in c.gamma_over_distance.items():
        if getattr(c, name) == "auto":
            changes[f"method.{name}"] = _gamma_over_distance(name, embedding, gamma)
    return replace(config, changes) if changes else config


def _gamma_over_distance(name: str, embedding: Embedding, gamma: float) -> float:
    """Return the log of the greatest squared distance of two embeddings, plus ``gamma``."""
    distance = greatest_distance(embedding.weight)
    value = round(2 * math.log(distance) + gamma, 6)  # processors may round in different ways
    if abs(value) > MAX_ABS_GAMMA:
        raise ConfigError(
            f"method.{name}: embeddings {distance:.4g} apart want {value:.2f}, and γ lies in "
            f"-{MAX_ABS_GAMMA}..{MAX_ABS_GAMMA}; give a value, or another method.embedding_norm"
        )
    return value


def resolve_layers(
    config: RunConfig, task: Task, factory: EncoderFactory | None = None
) -> RunConfig:
    """Return the configuration with the layers of the image path, where their number is ``auto``.

    Args:
        config: The run.
        task: The task.
        factory: Function that makes the user's own encoder.

    Raises:
        ConfigError: If the encoder does not suit the data.
    """
    if "num_layers" not in config.method.auto_fields:
        return config
    try:
        count = len(image_path(config, task, factory))
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
    return replace(config, {"method.num_layers": count})


def build_method(
    config: RunConfig,
    task: Task,
    embedding: Embedding,
    *,
    factory: EncoderFactory | None = None,
    only: str | None = None,
) -> Method:
    """Return the initialised method of a run; each part's start depends only on seed and name.

    Args:
        config: The run.
        task: The task.
        embedding: W_Embed; the method shares it.
        factory: Function that makes the user's own encoder, for ``method.encoder = "custom"``.
        only: The only unit of NoProp-DT to build, so that training one block needs the memory of
            one; by default all.

    Raises:
        ConfigError: If the settings do not fit together or do not suit the data.
    """
    config = resolve_auto(config, embedding)
    parts = Parts(config, task, embedding, factory, only)
    try:
        return BUILDERS[type(config.method)](config.method, parts)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
