"""The gradient of one update: a mini-batch through a unit's own loss, whole or in shards.

A mini-batch divided into shards (``train.shards``) has the gradient of their mean loss. As in
data-parallel training each shard is batch-normalised separately; the running statistics are the
mean over shards. Each shard draws its own noise. So the result depends on the number of shards,
never on the number of processes that compute them.

The units of a stack read the signals of one forward pass, which is computed once a mini-batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.data import Examples, Normalization, augment
from noprop.layers import channels_last, weighted_statistics
from noprop.methods.base import LossTerms, Method, Unit
from noprop.randomness import generator
from noprop.run_settings import TrainConfig
from noprop.training.mesh import Mesh, Requests

__all__ = ["Gradients", "flat_gradient", "scatter"]


class Gradients:
    """Losses of units on mini-batches of the training part, and their gradients.

    Args:
        train: Configuration of training.
        examples: Training part, on the device.
        normalization: Normalization of inputs.
        bf16: Whether convolutions and products run in bf16.
        mesh: The processes that compute the shards.
        stack: Method whose units read each other's outputs; None for any other.
        weights: Weights of the examples in the losses, shape (N,); all 1 unless given.
    """

    def __init__(
        self,
        train: TrainConfig,
        examples: Examples,
        normalization: Normalization,
        *,
        bf16: bool,
        mesh: Mesh,
        stack: Method | None = None,
        weights: Float[Tensor, " n"] | None = None,
    ):
        self.stack, self.weights = stack, weights
        self._read: tuple[tuple[int, int], Any, Tensor] | None = None  # of the last mini-batch
        self.c, self.examples, self.normalization = train, examples, normalization
        self.bf16, self.mesh = bf16, mesh
        self.num_shards = max(1, train.shards)

    def loss(
        self,
        unit: Unit,
        x: Tensor,
        y: Tensor,
        draws: torch.Generator,
        weight: tuple[Tensor, ...] = (),
    ) -> LossTerms:
        """Return a unit's loss on raw inputs; only units that read images receive them."""
        x = self._normalized(x if unit.reads_images else x[:0])
        with (
            torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16),
            weighted_statistics(unit.module, *(weight or (None,))),
        ):
            return unit.loss(x, y, draws, *weight)

    def signals(self, x: Tensor, y: Tensor, draws: torch.Generator, phase: int) -> Any:
        """Return what the units of a phase of the stack read of raw inputs."""
        assert self.stack
        x = self._normalized(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return self.stack.signals(x, y, draws, phase)

    def loss_in_stack(
        self,
        unit: Unit,
        signals: Any,
        y: Tensor,
        draws: torch.Generator,
        weight: tuple[Tensor, ...] = (),
    ) -> LossTerms:
        """Return the loss of a unit of the stack on what :meth:`signals` returned."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=self.bf16):
            return unit.loss(signals, y, draws, *weight)

    def _normalized(self, x: Tensor) -> Tensor:
        x = self.normalization.apply(x)
        return channels_last(x) if self.c.channels_last and x.ndim == 4 else x

    def backward(
        self,
        unit: Unit,
        shared: Sequence[nn.Parameter],
        indices: Int64[Tensor, " batch"],
        step: int,
        requests: Requests,
    ) -> tuple[LossTerms, Requests]:
        """Compute the gradient of a mini-batch in the unit's and the shared parameters.

        Args:
            unit: Unit whose loss is differentiated.
            shared: Shared parameters, without gradients.
            indices: Indices of the mini-batch's examples.
            step: Number of previous updates of the unit.
            requests: Requests of this process, sent to the mesh where there are shards.

        Returns:
            The loss, and the requests of the mesh.
        """
        if self.stack:
            terms = self._loss_in_stack(unit, indices, step)
            terms.total.backward()
            return terms, requests
        if self.num_shards == 1:
            batch = self._batch(unit, indices, step, unit.name)
            terms = self.loss(unit, *batch, self._weight(indices))
            terms.total.backward()
            return terms, requests
        return self._in_shards(unit, shared, indices, step, requests)

    def _loss_in_stack(self, unit: Unit, indices: Int64[Tensor, " batch"], step: int) -> LossTerms:
        """Return the loss of a unit; the first of a mini-batch computes what all of them read."""
        key = step, unit.phase
        if self._read is None or self._read[0] != key:
            self._read = None  # frees the activations of the mini-batch before
            x, y, draws = self._batch(unit, indices, step, f"stack/{unit.phase}")
            self._read = key, self.signals(x, y, draws, unit.phase), y
        draws = generator(self.c.seed, "step", step, unit.name, indices.device)
        return self.loss_in_stack(unit, *self._read[1:], draws, self._weight(indices))

    def _batch(
        self, unit: Unit, indices: Int64[Tensor, " batch"], step: int, block: str
    ) -> tuple[Tensor, Tensor, torch.Generator]:
        """Return inputs, labels and the generator of an update or of a shard of it."""
        draws = generator(self.c.seed, "step", step, block, indices.device)
        x = self.examples.x[indices] if unit.reads_images else self.examples.x[:0]
        c = self.c
        if unit.reads_images and (c.crop_padding or c.flip or c.cutout):
            x = augment(x, draws, padding=c.crop_padding, flip=c.flip, cutout=c.cutout)
        return x, self.examples.y[indices], draws

    def _weight(self, indices: Int64[Tensor, " batch"]) -> tuple[Tensor, ...]:
        """Return the fourth argument of a unit's loss, where examples have weights."""
        return () if self.weights is None else (self.weights[indices],)

    def _in_shards(
        self,
        unit: Unit,
        shared: Sequence[nn.Parameter],
        indices: Int64[Tensor, " batch"],
        step: int,
        requests: Requests,
    ) -> tuple[LossTerms, Requests]:
        parameters = [*unit.parameters, *shared]
        buffers = list(unit.module.buffers())
        averaged = [b for b in buffers if b.is_floating_point()]
        before = [b.clone() for b in buffers]
        names: list[str] = []

        def shard(number: int) -> Float[Tensor, " n"]:
            """Return gradients, statistics and terms of one shard, times its share of the batch."""
            for p in parameters:
                p.grad = None
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            part = indices.tensor_split(self.num_shards)[number]
            batch = self._batch(unit, part, step, f"{unit.name}/{number}")
            terms = self.loss(unit, *batch, self._weight(part))
            terms.total.backward()
            names[:] = terms.terms
            rest = [*averaged, *(t.detach() for t in terms.terms.values())]
            flat = torch.cat([flat_gradient(parameters), *(b.reshape(-1) for b in rest)])
            return flat * (len(part) / len(indices))

        mine = [shard(n) for n in self.mesh.shards(self.num_shards)]
        total, requests = self.mesh.sum_over_shards(mine, requests)
        rest = scatter(total, [_gradient_of(p) for p in parameters])
        values = scatter(rest, averaged)
        return LossTerms(dict(zip(names, values, strict=True))), requests


def _gradient_of(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    return p.grad


def flat_gradient(parameters: Sequence[nn.Parameter]) -> Float[Tensor, " n"]:
    """Return the gradients of parameters in one vector, with zeros where there is none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.reshape(-1) for part in parts])


def scatter(flat: Float[Tensor, " n"], tensors: Sequence[Tensor]) -> Float[Tensor, " rest"]:
    """Fill tensors with the beginning of a vector, and return the rest of it."""
    for tensor in tensors:
        tensor.copy_(flat[: tensor.numel()].view(tensor.shape))
        flat = flat[tensor.numel() :]
    return flat
