"""The numbered list of a group's updates, which the configuration alone fixes.

Two orders of the updates, which are different algorithms when something is shared:
``sequential`` (Algorithm 1) is, in each epoch, every mini-batch for block 1, then for block 2, …;
shared parameters then descend Eq. 61, block t's loss and the readout's on one mini-batch, for
without the readout's nothing keeps embeddings apart (nor does one that tells the classes from its
start; see :func:`noprop.build.resolve_auto`). ``parallel`` shows each mini-batch to every unit,
and moves shared parameters once a mini-batch, by the gradient of Eq. 8 (blocks weighted 1/T, the
readout 1).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from noprop.methods.base import Unit

__all__ = ["Update", "Updates"]


@dataclass(frozen=True)
class Update:
    """Where an update is: unit ``index`` of the group, mini-batch ``batch`` of pass ``turn``."""

    epoch: int
    index: int
    turn: int
    batch: int


@dataclass(frozen=True)
class Updates:
    """What update number n of a group is.

    Attributes:
        units: the group; of each, no more is asked than how it takes part in an epoch.
        order: ``sequential`` or ``parallel``, see above.
        epochs: of the training.
        batches: mini-batches of one pass over the training set.
        shared: whether the units share parameters.
    """

    units: tuple[Unit, ...]
    order: Literal["sequential", "parallel"]
    epochs: int
    batches: int
    shared: bool

    @cached_property
    def leading(self) -> list[int]:
        """Units that take their steps one after the other."""
        return [i for i, unit in enumerate(self.units) if not unit.beside]

    @cached_property
    def beside(self) -> list[int]:
        """Units that, where something is shared, take a step beside each of those."""
        return [i for i, unit in enumerate(self.units) if unit.beside]

    @cached_property
    def joined(self) -> bool:
        """Algorithm 1 with something shared: a step of a block, and one of the readout beside."""
        return self.shared and bool(self.leading) and self.order == "sequential"

    @cached_property
    def per_epoch(self) -> int:
        """Updates of the whole group in one epoch."""
        return sum(unit.passes for unit in self.units) * self.batches

    @property
    def total(self) -> int:
        """Updates of the whole training."""
        return self.epochs * self.per_epoch

    def at(self, position: int) -> Update:
        """What update number ``position`` is."""
        epoch, rest = divmod(position, self.per_epoch)
        if self.order == "parallel":
            batch, index = divmod(rest, len(self.units))
            return Update(epoch, index, 0, batch)
        if self.joined:
            pair, half = divmod(rest, 1 + len(self.beside))
            place, batch = divmod(pair, self.batches)
            if half == 0:
                return Update(epoch, self.leading[place], 0, batch)
            return Update(epoch, self.beside[half - 1], place, batch)
        for index, unit in enumerate(self.units):
            if rest < unit.passes * self.batches:
                return Update(epoch, index, *divmod(rest, self.batches))
            rest -= unit.passes * self.batches
        raise AssertionError("an epoch's updates are those of its units")

    def work(self, position: int) -> int:
        """Updates with images before ``position``: those that take the time.

        A group whose loss looks at no image counts all of its updates.
        """
        reads = [unit.reads_images for unit in self.units]
        if not any(reads):
            return position
        epoch, rest = divmod(position, self.per_epoch)
        done = epoch * self.batches * sum(u.passes for u in self.units if u.reads_images)
        if self.order == "parallel":
            batch, index = divmod(rest, len(reads))
            return done + batch * sum(reads) + sum(reads[:index])
        if self.joined:  # what takes a step beside the others reads no image
            pair, half = divmod(rest, 1 + len(self.beside))
            return done + pair + (half > 0)
        for unit, reads_images in zip(self.units, reads, strict=True):
            here = min(rest, unit.passes * self.batches)
            done += here * reads_images
            rest -= here
        return done

    def between_steps(self, position: int) -> bool:
        """Whether no gradient of shared parameters waits for the rest of a mini-batch."""
        if not self.shared:
            return True
        if self.order == "parallel":
            return position % len(self.units) == 0
        return not self.joined or position % (1 + len(self.beside)) == 0

    def step(self, update: Update) -> int:
        """How many updates of its unit come before: the number that seeds its noise."""
        passes = self.units[update.index].passes
        return (update.epoch * passes + update.turn) * self.batches + update.batch

    def shuffle(self, update: Update) -> tuple[int, str]:
        """Number and unit of its shuffle: its own in each pass, or one for those joined."""
        unit, turn = self.units[update.index], update.turn
        if self.joined and unit.beside:
            unit, turn = self.units[self.leading[turn]], 0
        alone = self.order == "sequential"
        return update.epoch * unit.passes + turn, unit.name if alone else ""

    def ends_epoch(self, update: Update) -> bool:
        """Whether it is its unit's last in an epoch."""
        passes = self.units[update.index].passes
        return update.batch == self.batches - 1 and update.turn == passes - 1
