"""What a group of units is while it is trained: its weights and optimizers, in memory and on disk.

The checkpoint of a group is one file; or, where units wait for their turn (``train.offload``) or
are spread over processes, one with what they share and a file beside it for each unit. Which of the
two it is depends on the configuration, never on the number of processes: any number of them can go
on from the checkpoint of any other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noprop.config import TrainConfig
from noprop.errors import RunError
from noprop.methods.base import Method, Unit
from noprop.training.checkpoint import (
    DamagedError,
    check_fingerprint,
    flatten,
    read_about,
    save_tensors,
    unflatten,
)
from noprop.training.generations import Generation, newest, previous_of, promote, save_generation
from noprop.training.offload import Shelf, Waiting, read_checkpoint
from noprop.training.optimizers import make_optimizer, optimizer_state, restore_optimizer
from noprop.training.team import Team

__all__ = ["GroupState", "kept_path"]


def kept_path(place: Path, unit: str, epoch: int) -> Path:
    """The copy of a unit after an epoch, in the folder of its group."""
    return place / f"{unit}.epoch-{epoch}.safetensors"


class GroupState:
    """Weights and optimizer states of a group.

    Args:
        train: how the units are trained.
        method: whose shared parameters are trained with the group.
        units: the group.
        checkpoint: the group's file.
        fingerprint: of the settings and the data; a checkpoint with another is refused.
        shelf: where units have files of their own; ``units`` then has a :class:`Waiting` in the
            place of each that is not in memory.
        team: who trains the group.
    """

    def __init__(
        self,
        train: TrainConfig,
        method: Method,
        units: Sequence[Unit],
        *,
        checkpoint: Path,
        fingerprint: str = "",
        shelf: Shelf | None = None,
        team: Team,
    ):
        self.c, self.method, self.units = train, method, list(units)
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self.shelf, self.team = shelf, team
        self.optimizers = [self._optimizer(unit) for unit in units]
        self.visitor: int | None = None  # the unit in memory that waits at other times
        shared = method.shared_parameters
        self.shared_optimizer = make_optimizer(self.c, shared) if shared else None

    def has(self, index: int) -> bool:
        """Whether a unit is trained in this process."""
        return self.team.units is None or self.units[index].name in self.team.units

    def not_finite(self) -> str | None:
        """The first unit with a weight or statistic that is not finite; shared ones count too."""
        shared = {"shared embeddings": self.method.shared}
        for name, module in {**{u.name: u.module for u in self.units}, **shared}.items():
            if not all(bool(v.isfinite().all()) for v in module.state_dict().values()):
                return name
        return None

    # -- units that wait -------------------------------------------------------------------------

    def waits(self, index: int) -> bool:
        """Whether a unit must be brought into memory before it is trained."""
        return self.optimizers[index] is None

    def bring(self, index: int, position: int) -> None:
        """Have a unit in memory, in place of the one that was there before it."""
        assert self.shelf
        if self.visitor is not None:
            self._put(self.visitor, position)
            self._set(self.visitor, Waiting(self.units[self.visitor].name))
        unit, tensors = self.shelf.take(self.units[index].name)
        unit.module.train()
        self._set(index, unit)
        self.visitor = index
        if tensors:
            with self._one_architecture():
                self._load(index, tensors)

    def _optimizer(self, unit: Unit) -> torch.optim.Optimizer | None:
        return None if isinstance(unit, Waiting) else make_optimizer(self.c, unit.parameters)

    def _set(self, index: int, unit: Unit) -> None:
        self.units[index], self.optimizers[index] = unit, self._optimizer(unit)

    def _put(self, index: int, position: int) -> None:
        """Have the file of a unit say what it is before update ``position``."""
        assert self.shelf
        self.shelf.put(self.units[index].name, position, self._state(index))

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self, about: dict[str, Any]) -> None:
        """Write weights and optimizer states.

        Args:
            about: what else the checkpoint says: at least ``position``, the updates made.
        """
        position = about["position"]
        apart = [i for i in range(len(self.units)) if self._has_a_file(i)]
        if self.team.speaks:
            for index in apart:
                self._put(index, position)
        self.team.meet()  # the files of all are there before a checkpoint lists them
        if self.shelf and not self.c.offload:
            self.shelf.positions = {unit.name: position for unit in self.units}
        if not self.team.leads:
            if self.shelf:
                self.shelf.settle(delete=False)
            return
        tensors = flatten("shared", self.method.shared.state_dict())
        for index, optimizer in enumerate(self.optimizers):
            if optimizer and index not in apart:
                tensors |= self._state(index)
        if self.shared_optimizer:
            tensors |= flatten("shared-optimizer", optimizer_state(self.shared_optimizer))
        listed = {"waiting": self.shelf.positions} if self.shelf else {}
        save_generation(
            self.checkpoint, tensors, {**about, "fingerprint": self.fingerprint, **listed}
        )
        if self.shelf:
            self.shelf.settle()

    def _has_a_file(self, index: int) -> bool:
        """Whether a unit in memory has a file beside the checkpoint."""
        if not self.shelf or self.waits(index):
            return False
        return not self.c.offload or index == self.visitor

    def keep(self, index: int, about: dict[str, Any]) -> None:
        """Leave a copy of a unit's weights, and of the shared ones, for good.

        Args:
            index: of the unit.
            about: what the copy says; ``epoch`` is in its name.
        """
        unit = self.units[index]
        tensors = flatten(f"{unit.name}/module", unit.module.state_dict())
        tensors |= flatten("shared", self.method.shared.state_dict())
        path = kept_path(self.checkpoint.parent, unit.name, about["epoch"])
        save_tensors(path, tensors, {**about, "fingerprint": self.fingerprint})

    def resume(self, total: int) -> Generation[dict[str, Any]] | None:
        """Take up the last checkpoint that is whole, if there is one.

        Args:
            total: updates of this training.

        Returns:
            What the checkpoint says.

        Raises:
            RunError: If it belongs to another architecture or length of training, or to a training
                in which units did not wait as they do in this one.
        """
        if not self.team.leads:
            self.team.meet()  # until the leader has put the files in order
        found = newest(self.checkpoint, read_checkpoint)
        if found:
            self._check(found.content[1], total)
            self._take_up(found.content[0])
            if found.path != self.checkpoint and self.team.leads:
                promote(self.checkpoint)
        if self.shelf:
            positions = found.content[1]["waiting"] if found else {}
            older = self._waiting_before() if found else {}
            self.shelf.begin(positions, older, delete=self.team.leads)
        if self.shelf and not self.c.offload:
            for index, unit in enumerate(self.units):
                if not self.waits(index) and (tensors := self.shelf.tensors(unit.name)):
                    with self._one_architecture():
                        self._load(index, tensors)
        if self.team.leads:
            self.team.meet()
        return found and Generation(found.content[1], found.path, found.trouble)

    def _check(self, about: dict[str, Any], total: int) -> None:
        if not {"position", "total"} <= about.keys():
            raise RunError(f"{self.checkpoint}: is no checkpoint of a training")
        check_fingerprint(self.checkpoint, about, self.fingerprint)
        if unknown := about.get("waiting", {}).keys() - {unit.name for unit in self.units}:
            raise RunError(f"{self.checkpoint}: lists {min(unknown)}, which is no unit of this run")
        if about["total"] != total:
            raise RunError(
                f"{self.checkpoint}: belongs to a training of {about['total']} updates, "
                f"this one has {total}"
            )
        if ("waiting" in about) != bool(self.shelf):
            before, now = ("off", "on") if self.shelf else ("on", "off")
            raise RunError(
                f"{self.checkpoint}: was written with train.offload {before}, now it is {now}; "
                "put it back, or begin a run of its own"
            )

    def _take_up(self, tensors: dict[str, Tensor]) -> None:
        with self._one_architecture():
            self.method.shared.load_state_dict(unflatten("shared", tensors))
            for index, optimizer in enumerate(self.optimizers):
                if optimizer and not self._has_a_file(index):
                    self._load(index, tensors)
            if self.shared_optimizer:
                restore_optimizer(self.shared_optimizer, unflatten("shared-optimizer", tensors))

    def _waiting_before(self) -> dict[str, int]:
        """The files that the checkpoint before the last one lists."""
        try:
            return read_about(previous_of(self.checkpoint)).get("waiting", {})
        except DamagedError:  # or there is none
            return {}

    def _state(self, index: int) -> dict[str, Tensor]:
        unit, optimizer = self.units[index], self.optimizers[index]
        assert optimizer
        tensors = flatten(f"{unit.name}/module", unit.module.state_dict())
        return tensors | flatten(f"{unit.name}/optimizer", optimizer_state(optimizer))

    def _load(self, index: int, tensors: dict[str, Tensor]) -> None:
        unit, optimizer = self.units[index], self.optimizers[index]
        assert optimizer
        unit.module.load_state_dict(unflatten(f"{unit.name}/module", tensors))
        restore_optimizer(optimizer, unflatten(f"{unit.name}/optimizer", tensors))

    @contextmanager
    def _one_architecture(self) -> Iterator[None]:
        """In here tensors that do not fit are those of another architecture."""
        try:
            yield
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            first = " ".join(str(error).split())[:200]
            raise RunError(f"{self.checkpoint}: belongs to another architecture: {first}") from None
