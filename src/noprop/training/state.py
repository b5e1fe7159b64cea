"""A group of units while it is trained: weights and optimizers, in memory and in files.

Each unit has a file, and so have the shared parameters with their optimizer. With learned
embeddings all blocks are one group, yet Algorithm 1 trains one at a time: every mini-batch of an
epoch for block 1, then for block 2, …. With ``train.offload`` only that one is in memory, with the
readout that takes its steps with it; the others are *parked* in their files, or not made yet.

Commits with and without it are alike, as are those of one process and of many: a training that
began with one can be resumed with the other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.errors import RunError
from noprop.methods.base import LossTerms, Method, Unit
from noprop.run_settings import TrainConfig
from noprop.tensor_files import flatten, unflatten
from noprop.training.commits import (
    Commit,
    Found,
    Part,
    delete_unnamed,
    latest,
    load_part,
    restore_previous,
    write_commit,
    write_part,
)
from noprop.training.mesh import Mesh
from noprop.training.optimizers import (
    Optimizer,
    descend,
    follow,
    optimizer_state,
    restore_average,
    restore_optimizer,
)
from noprop.training.patience import Patience

__all__ = ["SHARED", "GroupState", "Parked"]

SHARED = "shared"


class Parked(Unit):
    """The place of a block that is not in memory: its name, without weights.

    Its part in an epoch is a block's, which is what :class:`Unit` has by default.
    """

    def __init__(self, name: str):
        self.name = name
        self.module = nn.Module()

    def loss(
        self, x: Float[Tensor, "images ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """Raise, for a parked block is loaded before it is trained."""
        raise AssertionError(f"{self.name} is not in memory")


class GroupState:
    """Weights and optimizer states of a group.

    Args:
        train: How the units are trained.
        method: Method whose shared parameters are trained with the group.
        units: The group, with a :class:`Parked` for each unit that is not in memory.
        folder: Folder of the group.
        fingerprint: Digest of the settings and the data; a commit with another is refused.
        build: Makes a unit of the group as it is before training, on its device, given its name.
        mesh: The processes that train the group.

    Attributes:
        is_mine: Whether each unit is trained in this process.
        optimizers: Optimizer of each unit; None while it is parked.
        averages: Moving averages of each unit's weights; empty while it is parked, or without them.
        best: Weights and averages of each unit after the best epoch; empty without
            ``train.patience``, and after the end.
        shared_best: The same of the shared parameters.
        patience: Which epoch was the best.
        changed: Names of the parts that an update has changed since their file was written.
        files: The last file of each part; none for what has not been written.
    """

    def __init__(
        self,
        train: TrainConfig,
        method: Method,
        units: Sequence[Unit],
        *,
        folder: Path,
        fingerprint: str = "",
        build: Callable[[str], Unit] | None = None,
        mesh: Mesh,
    ):
        self.c, self.method, self.units = train, method, list(units)
        self.folder, self.fingerprint, self.build = folder, fingerprint, build
        self.mesh = mesh
        self.is_mine = [mesh.units is None or unit.name in mesh.units for unit in units]
        self.optimizers = [self._optimizer(unit) for unit in units]
        self.averages = [self._average(unit.module) for unit in units]
        shared = method.shared_parameters
        self.shared_optimizer = Optimizer(self.c, [{"params": list(shared)}]) if shared else None
        self.shared_average = self._average(method.shared) if shared else {}
        self.best: list[dict[str, Any]] = [{} for _ in units]
        self.shared_best: dict[str, Any] = {}
        self.patience = Patience(train.patience)
        self.files: dict[str, Part] = {}
        self.changed = {SHARED} | {unit.name for unit in units if not isinstance(unit, Parked)}
        self.visitor: int | None = None  # the unit in memory that is parked at other times

    def not_finite(self) -> str | None:
        """Return the first unit, or the shared embeddings, with a value that is not finite."""
        modules = {
            **{u.name: u.module for u in self.units},
            "shared embeddings": self.method.shared,
        }
        for name, module in modules.items():
            if not all(bool(v.isfinite().all()) for v in module.state_dict().values()):
                return name
        return None

    def _optimizer(self, unit: Unit) -> Optimizer | None:
        return None if isinstance(unit, Parked) else Optimizer(self.c, unit.parameter_groups())

    def _average(self, module: nn.Module) -> dict[str, Tensor]:
        if not self.c.ema:
            return {}
        return {n: v.clone() for n, v in module.state_dict().items() if v.is_floating_point()}

    # -- updates ---------------------------------------------------------------------------------

    def update(self, index: int, lr: float, number: int) -> None:
        """Update a unit along its gradient, which is freed.

        Args:
            index: Index of the unit.
            lr: Learning rate.
            number: Number of previous updates of the unit.
        """
        unit, optimizer = self.units[index], self.optimizers[index]
        assert optimizer
        descend(optimizer, lr, self.c.clip)
        follow(self.averages[index], unit.module, self.c.ema, number)
        self.changed.add(unit.name)

    def update_shared(self, lr: float, number: int) -> None:
        """Update the shared parameters; ``number`` is that of their previous updates."""
        assert self.shared_optimizer
        descend(self.shared_optimizer, lr, self.c.clip)
        follow(self.shared_average, self.method.shared, self.c.ema, number)
        self.changed.add(SHARED)

    # -- the best epoch --------------------------------------------------------------------------

    def keep_best(self) -> None:
        """Copy the weights and their averages, which are those of the best epoch until now."""
        self.best = [
            _copy_of(unit.module, average)
            for unit, average in zip(self.units, self.averages, strict=True)
        ]
        self.shared_best = _copy_of(self.method.shared, self.shared_average)

    def restore_best(self) -> None:
        """Load the weights and averages of the best epoch, if there is one, and drop the copies."""
        for unit, average, best in zip(self.units, self.averages, self.best, strict=True):
            _load_copy(unit.module, average, best)
        _load_copy(self.method.shared, self.shared_average, self.shared_best)
        self.best, self.shared_best = [{} for _ in self.units], {}
        self.touch()

    def touch(self) -> None:
        """Have the next commit write every part."""
        self.changed = {SHARED} | {u.name for u in self.units if not isinstance(u, Parked)}

    # -- parked units ----------------------------------------------------------------------------

    def load(self, index: int, position: int) -> None:
        """Load a parked unit, and park the one before it as it is before update ``position``.

        Raises:
            RunError: If a file cannot be written, or is damaged.
        """
        if self.visitor is not None:
            self._write(self.visitor, position)
            delete_unnamed(self.folder, self.files.values())
            self._place(self.visitor, Parked(self.units[self.visitor].name))
        assert self.build
        unit = self.build(self.units[index].name)
        unit.module.train()
        self._place(index, unit)
        self.visitor = index
        if unit.name in self.files:
            self._load_unit(index)
        else:
            self.changed.add(unit.name)

    def _place(self, index: int, unit: Unit) -> None:
        self.units[index], self.optimizers[index] = unit, self._optimizer(unit)
        self.averages[index] = self._average(unit.module)

    # -- commits ---------------------------------------------------------------------------------

    def commit(
        self, position: int, total: int, seconds: float, *, keep_as_epoch: int | None = None
    ) -> None:
        """Write what has changed, and make it the last commit of the group.

        Args:
            position: Updates made.
            total: Updates of the whole training.
            seconds: Time of training until now.
            keep_as_epoch: Epoch under which to keep the commit for good.

        Raises:
            RunError: If it cannot be written; the commit before is kept.
        """
        if self.mesh.reports:
            for index in range(len(self.units)):
                if self.optimizers[index]:
                    self._write(index, position)
        self._share_files(position)  # so the files of all processes exist before the manifest
        if not self.mesh.writes:
            return
        if SHARED in self.changed:
            self.files[SHARED] = write_part(self.folder, SHARED, position, self._shared_tensors())
            self.changed.discard(SHARED)
        commit = Commit(position, total, seconds, dict(self.files), self.fingerprint)
        write_commit(self.folder, commit, keep_as_epoch=keep_as_epoch)

    def _write(self, index: int, position: int) -> None:
        """Write the file of a unit as it is before update ``position``, if it has changed."""
        name = self.units[index].name
        if name in self.changed:
            self.files[name] = write_part(self.folder, name, position, self._unit_tensors(index))
            self.changed.discard(name)

    def _share_files(self, position: int) -> None:
        """Learn the files of the units that other processes have: their digests are sent."""
        if all(self.is_mine):
            return
        digests = torch.zeros(len(self.units), 32, dtype=torch.uint8)
        for index, unit in enumerate(self.units):
            if self.is_mine[index] and unit.name in self.files:
                digests[index] = torch.frombuffer(
                    bytearray.fromhex(self.files[unit.name].sha256), dtype=torch.uint8
                )
        for unit, digest in zip(self.units, self.mesh.merge(digests), strict=True):
            # Units are divided among processes in parallel order alone: all have changed.
            file = f"{unit.name}.{position}.safetensors"
            self.files[unit.name] = Part(file, digest.numpy().tobytes().hex())

    def resume(self, total: int) -> Found | None:
        """Load the last commit that is whole, if there is one.

        Args:
            total: Updates of this training.

        Raises:
            RunError: If it is of another architecture, length of training, settings or data.
        """
        if not self.mesh.writes:
            self.mesh.barrier()  # until the process that writes has put the files in order
        found = latest(self.folder, files=self.mesh.writes)
        if found:
            self._check(found.commit, total)
            self.files = dict(found.commit.files)
            with self._one_architecture():
                self._load_shared()
                for index, unit in enumerate(self.units):
                    # One without a file was parked before its first update: as it was built.
                    if self.optimizers[index] and unit.name in self.files:
                        self._load_unit(index)
        if self.mesh.writes:
            if found:
                restore_previous(self.folder, found)
            delete_unnamed(self.folder)
            self.mesh.barrier()
        return found

    def _check(self, commit: Commit, total: int) -> None:
        commit.check(self.folder, self.fingerprint)
        if commit.total != total:
            raise RunError(
                f"{self.folder}: its checkpoint belongs to a training of {commit.total} updates, "
                f"this one has {total}"
            )
        names = {unit.name for unit in self.units}
        if unknown := commit.files.keys() - names - {SHARED}:
            raise RunError(
                f"{self.folder}: its checkpoint names {min(unknown)}, which is no unit of this run"
            )
        if SHARED not in commit.files:
            raise RunError(f"{self.folder}: its checkpoint has no file of what units share")

    # -- tensors ---------------------------------------------------------------------------------

    def _unit_tensors(self, index: int) -> dict[str, Tensor]:
        unit, optimizer = self.units[index], self.optimizers[index]
        assert optimizer
        tensors = flatten(f"{unit.name}/module", unit.module.state_dict())
        tensors |= flatten(f"{unit.name}/average", self.averages[index])
        tensors |= flatten(f"{unit.name}/best", self.best[index])
        return tensors | flatten(f"{unit.name}/optimizer", optimizer_state(optimizer))

    def _load_unit(self, index: int) -> None:
        unit, optimizer = self.units[index], self.optimizers[index]
        assert optimizer
        tensors = load_part(self.folder, self.files[unit.name])
        with self._one_architecture():
            unit.module.load_state_dict(unflatten(f"{unit.name}/module", tensors))
            restore_average(self.averages[index], unflatten(f"{unit.name}/average", tensors))
            restore_optimizer(optimizer, unflatten(f"{unit.name}/optimizer", tensors))
            self.best[index] = unflatten(f"{unit.name}/best", tensors)
        self.changed.discard(unit.name)

    def _shared_tensors(self) -> dict[str, Tensor]:
        tensors = flatten("shared", self.method.shared.state_dict())
        if self.shared_optimizer:
            tensors |= flatten("shared-average", self.shared_average)
            tensors |= flatten("shared-optimizer", optimizer_state(self.shared_optimizer))
        if self.patience.limit:
            tensors |= flatten("shared-best", self.shared_best)
            tensors["patience/numbers"] = self.patience.numbers()
        return tensors

    def _load_shared(self) -> None:
        tensors: Mapping[str, Tensor] = load_part(self.folder, self.files[SHARED])
        self.method.shared.load_state_dict(unflatten("shared", tensors))
        if self.shared_optimizer:
            restore_average(self.shared_average, unflatten("shared-average", tensors))
            restore_optimizer(self.shared_optimizer, unflatten("shared-optimizer", tensors))
        if self.patience.limit:
            self.shared_best = unflatten("shared-best", tensors)
            self.patience.restore(tensors["patience/numbers"])
        self.changed.discard(SHARED)

    @contextmanager
    def _one_architecture(self) -> Iterator[None]:
        """Report tensors that do not fit as those of another architecture."""
        try:
            yield
        except RunError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            first = " ".join(str(error).split())[:200]
            raise RunError(
                f"{self.folder}: its checkpoint belongs to another architecture: {first}"
            ) from None


def _copy_of(module: nn.Module, average: Mapping[str, Tensor]) -> dict[str, Any]:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {"module": state, "average": {name: value.clone() for name, value in average.items()}}


def _load_copy(module: nn.Module, average: Mapping[str, Tensor], copy: Mapping[str, Any]) -> None:
    if copy:
        module.load_state_dict(copy.get("module", {}))
        restore_average(average, copy.get("average", {}))
