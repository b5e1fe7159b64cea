"""Networks, layers and readouts of a configuration, each seeded by its own name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from noprop.chain_settings import LatentConfig
from noprop.config import RunConfig
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory, image_layers
from noprop.errors import ConfigError
from noprop.networks import ContinuousBlock, DiscreteBlock, Reads
from noprop.randomness import derive_seed, seeded
from noprop.readouts import RadialReadout, Readout, SoftmaxReadout
from noprop.settings import EncoderConfig
from noprop.stack_settings import ImagePathConfig
from noprop.task import Task

__all__ = ["Parts", "image_path"]

Block = TypeVar("Block", DiscreteBlock, ContinuousBlock)


@dataclass(frozen=True)
class Parts:
    """Networks and readouts of a configuration, each seeded by its own name."""

    config: RunConfig
    task: Task
    embedding: Embedding
    factory: EncoderFactory | None
    only: str | None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d,), or the shape of an image if d is the size of one (Section 2.3.2)."""
        dim, shape = self.embedding.weight.shape[1], self.task.shape
        kind = self.config.method.embedding
        as_large = len(shape) == 3 and dim == torch.Size(shape).numel() and kind != "one-hot"
        return shape if as_large or kind == "prototype" else (dim,)

    def discrete_block(self, name: str, reads: Reads = "x and z") -> DiscreteBlock:
        """Return a block of Fig. 5, left."""
        return self._network(DiscreteBlock, name, reads=reads)

    def continuous_block(
        self,
        time_scale: float,
        latent_dropout: float | None = None,
        reads: Reads = "x and z",
    ) -> ContinuousBlock:
        """Return the network of Fig. 5, right."""
        options = {"time_scale": time_scale, "latent_dropout": latent_dropout}
        return self._network(ContinuousBlock, "network", reads=reads, **options)

    def _network(self, kind: Callable[..., Block], name: str, **options: Any) -> Block:
        c = self.config.method
        assert isinstance(c, EncoderConfig)
        with seeded(derive_seed(self.config.train.seed, "init", block=name)):
            return kind(
                self.task.shape,
                self.latent_shape,
                self.task.num_classes,
                encoder=c.encoder,
                dropout=c.dropout,
                dropout_kind=c.dropout_kind,
                factory=self.factory,
                **options,
            )

    def image_layers(self, c: ImagePathConfig) -> list[tuple[nn.Module, int]]:
        """Return the layers of Fig. 5's image path, each with the size of its output."""
        layers = image_path(self.config, self.task, self.factory)
        if c.num_layers not in ("auto", len(layers)):
            raise ConfigError(
                f"method.num_layers: wanted {len(layers)}, the layers with weights of the image "
                f"path, or auto, got {c.num_layers}"
            )
        x, sized = torch.zeros(2, *self.task.shape), list[tuple[nn.Module, int]]()
        with torch.no_grad():
            for layer in layers:
                x = layer.eval()(x)
                sized.append((layer.train(), x[0].numel()))
        return sized

    def classifier(self, name: str, features: int) -> nn.Linear:
        """Return a linear layer to m logits."""
        with seeded(derive_seed(self.config.train.seed, "init", block=name)):
            return nn.Linear(features, self.task.num_classes)

    def readout(self) -> Readout:
        """Return the readout as it is before training."""
        c = self.config.method
        assert isinstance(c, LatentConfig)
        weight = self.embedding.weight.detach()
        with seeded(derive_seed(self.config.train.seed, "init", block="readout")):
            assert c.readout_start != "auto"
            if c.readout == "softmax":
                return SoftmaxReadout(weight, c.readout_start)
            return RadialReadout(weight, c.readout_start, c.sigma)


def image_path(
    config: RunConfig, task: Task, factory: EncoderFactory | None
) -> Sequence[nn.Module]:
    """Return the layers of the image path as they are before training."""
    c = config.method
    assert isinstance(c, ImagePathConfig)
    with seeded(derive_seed(config.train.seed, "init", block="image")):
        return image_layers(
            task.shape,
            kind=c.encoder,
            dropout=c.dropout,
            factory=factory,
            dropout_kind=c.dropout_kind,
        )
