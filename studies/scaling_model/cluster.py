"""Machines, links and what is trained on them, as plain numbers; what a message and a step take."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

__all__ = ["Algorithm", "FLOAT", "Machine", "Workload", "all_reduce", "slowest"]

FLOAT = 4  # bytes
Algorithm = Literal["ring", "halving"]


@dataclass(frozen=True)
class Machine:
    """One machine and its link; all of them are alike.

    Attributes:
        forward: seconds of a block's forward pass for each example, above 0.
        backward: the same of the backward pass.
        call: seconds of both passes of a block whatever the batch.
        update: seconds of the optimizer's step of a block.
        bandwidth: bytes a second into and out of a machine, each.
        latency: seconds of a message of no bytes.
        mtbf: mean time between failures, seconds; infinite for none.
        restart: seconds from a failure until work continues.
        storage: bytes a second of writing a checkpoint.
        jitter: standard deviation of the logarithm of a step's computing time.
    """

    forward: float
    backward: float
    call: float = 0.0
    update: float = 0.0
    bandwidth: float = math.inf
    latency: float = 0.0
    mtbf: float = math.inf
    restart: float = 0.0
    storage: float = math.inf
    jitter: float = 0.0

    def passes(self, examples: int) -> float:
        """Seconds of a block's passes, without its update."""
        return self.call + examples * (self.forward + self.backward)

    def transfer(self, size: float | int) -> float:
        """Seconds of a message of so many bytes."""
        return self.latency + size / self.bandwidth


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        blocks: T.
        parameters: of a block.
        examples: of the training part.
        epochs: of every method.
        batch: examples of a mini-batch, over all machines.
        classes: m.
        dim: d.
        activations: bytes that a block keeps for its backward pass, for each example.
        boundary: bytes between two blocks of the chain for each example: z_t, 4 d, unless given.
        example: bytes of an example, as stored.
    """

    blocks: int
    parameters: int
    examples: int
    epochs: int
    batch: int
    classes: int
    dim: int
    activations: float
    example: float
    boundary: float | None = None

    @property
    def steps(self) -> int:
        """Mini-batches of a training."""
        return self.epochs * max(1, self.examples // self.batch)

    @property
    def gradient(self) -> int:
        """Bytes of a block's gradient, and of its weights."""
        return FLOAT * self.parameters

    @property
    def between(self) -> float:
        """Bytes between two blocks, for each example and direction."""
        return float(FLOAT * self.dim) if self.boundary is None else self.boundary

    def alone(self, machine: Machine) -> float:
        """Seconds on one machine that never fails."""
        return self.steps * self.blocks * (machine.passes(self.batch) + machine.update)


def all_reduce(
    machines: int, size: float | int, machine: Machine, algorithm: Algorithm = "ring"
) -> tuple[float, float]:
    """Seconds of an all-reduce, and the bytes that each machine sends: 2 (P-1)/P times ``size``.

    Thakur, Rabenseifner and Gropp 2005: a ring takes 2 (P-1) messages one after the other, halving
    and doubling 2 log2 P (rounded up), and both send the same. The additions are not counted.
    """
    sent = 2 * (machines - 1) / machines * size
    hops = 2 * (machines - 1) if algorithm == "ring" else 2 * math.ceil(math.log2(machines))
    return hops * machine.latency + sent / machine.bandwidth, sent


def slowest(machines: int, jitter: float, nodes: int = 2000) -> float:
    """Expected slowest of some machines at one step, their mean being 1.

    Factors are log-normal. With F their distribution, the maximum is F⁻¹(v^(1/P)) for v uniform.
    """
    if jitter == 0 or machines == 1:
        return 1.0
    normal = NormalDist()
    levels = (((i + 0.5) / nodes) ** (1 / machines) for i in range(nodes))
    values = (math.exp(jitter * normal.inv_cdf(v) - jitter**2 / 2) for v in levels)
    return sum(values) / nodes
