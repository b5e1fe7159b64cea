"""The updates of a group in their order, which the configuration alone fixes.

Two orders, which are different algorithms when something is shared. ``sequential`` (Algorithm 1)
is, in each epoch, every mini-batch for block 1, then for block 2, …; shared parameters then descend
Eq. 61, block t's loss and the readout's on one mini-batch, for without the readout's nothing keeps
embeddings apart (nor does a readout that tells the classes from its start; see
:func:`noprop.build.resolve_auto`). ``parallel`` shows each mini-batch to every unit, and moves
shared parameters once a mini-batch, by the gradient of Eq. 8 (blocks weighted 1/T, the readout 1).

A stack, whose units read each other's outputs, has an order of its own in place of these two:
``stack`` shows each mini-batch to every unit of a phase, and the whole epoch to one phase after the
other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from noprop.methods.base import Unit

__all__ = ["Order", "Plan", "Update"]

Order = Literal["sequential", "parallel", "stack"]


@dataclass(frozen=True)
class Update:
    """One update: unit ``unit`` of the group, on mini-batch ``batch`` of its pass ``turn``."""

    epoch: int
    unit: int
    turn: int
    batch: int


def epoch_of(
    units: Sequence[Unit], order: Order, batches: int, shared: bool
) -> Iterable[Sequence[tuple[int, int, int]]]:
    """Return the mini-batches of an epoch, each a list of updates (unit, pass, batch)."""
    blocks = [i for i, unit in enumerate(units) if not unit.beside]
    beside = [i for i, unit in enumerate(units) if unit.beside]
    if order == "stack":
        phases = sorted({unit.phase for unit in units})
        return (
            [(i, 0, b) for i, unit in enumerate(units) if unit.phase == phase]
            for phase in phases
            for b in range(batches)
        )
    if order == "parallel":
        return ([(i, 0, b) for i in range(len(units))] for b in range(batches))
    if shared and blocks:
        return (
            [(i, 0, b), *((j, t, b) for j in beside)]
            for t, i in enumerate(blocks)
            for b in range(batches)
        )
    return (
        [(i, t, b)] for i, u in enumerate(units) for t in range(u.passes) for b in range(batches)
    )


class Plan:
    """All updates of a group: update n is entry n modulo the length of an epoch.

    Args:
        units: The group. Of each, only how it takes part in an epoch is read.
        order: ``sequential``, ``parallel`` or ``stack``, see above.
        epochs: Epochs of the training.
        batches: Mini-batches of one pass over the training set.
        shared: Whether the units share parameters.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        order: Order,
        epochs: int,
        batches: int,
        shared: bool,
    ):
        self.units, self.order, self.batches, self.shared = tuple(units), order, batches, shared
        # In arrays, for a thousand blocks have a million updates an epoch.
        rows = [
            (*step, step is steps[-1])
            for steps in epoch_of(units, order, batches, shared)
            for step in steps
        ]
        self.rows = np.array(rows, dtype=np.int32)  # unit, pass, batch, whether a mini-batch ends
        reads = np.array([unit.reads_images for unit in units])
        reads |= not reads.any()  # a group whose losses read no image counts all of its updates
        self.read_before = np.concatenate([[0], reads[self.rows[:, 0]].cumsum()])
        self.total = epochs * len(rows)

    def at(self, position: int) -> Update:
        """Return update number ``position``."""
        epoch, index = divmod(position, len(self.rows))
        unit, turn, batch, _ = self.rows[index].tolist()
        return Update(epoch, unit, turn, batch)

    def begins_mini_batch(self, position: int) -> bool:
        """Return whether the update is the first of its mini-batch, or the training has ended.

        Only then does no gradient of shared parameters wait for the rest of a mini-batch.
        """
        return bool(self.rows[(position - 1) % len(self.rows), 3])

    def mini_batches(self, position: int) -> int:
        """Return how many mini-batches end before a position."""
        ends = self.rows[:, 3]
        epochs, rest = divmod(position, len(ends))
        return epochs * int(ends.sum()) + int(ends[:rest].sum())

    def work(self, position: int) -> int:
        """Return how many updates before ``position`` read images: those that take the time."""
        epoch, index = divmod(position, len(self.rows))
        return epoch * int(self.read_before[-1]) + int(self.read_before[index])

    def step(self, update: Update) -> int:
        """Return how many updates of its unit come before: the number that seeds its noise."""
        passes = self.units[update.unit].passes
        return (update.epoch * passes + update.turn) * self.batches + update.batch

    def progress(self, update: Update) -> float:
        """Return how far its unit is in its training, in (0, 1): what sets the learning rate."""
        total = self.total // len(self.rows) * self.units[update.unit].passes * self.batches
        return (self.step(update) + 0.5) / total

    def shuffle(self, update: Update) -> tuple[int, str]:
        """Return what seeds its shuffle: the number of the pass, and the unit unless all share it.

        A unit that takes its steps with the blocks has the shuffle of the block.
        """
        unit, turn = self.units[update.unit], update.turn
        blocks = [unit for unit in self.units if not unit.beside]
        if self.order == "sequential" and self.shared and unit.beside and blocks:
            unit, turn = blocks[turn], 0
        return update.epoch * unit.passes + turn, unit.name if self.order == "sequential" else ""

    def ends_epoch(self, update: Update) -> bool:
        """Return whether it is the last update of its unit in an epoch."""
        last = self.units[update.unit].passes - 1
        return (update.turn, update.batch) == (last, self.batches - 1)
