"""Blocks that wait in files while another is trained, for memory that does not grow with T.

With learned embeddings all blocks are one group, yet Algorithm 1 trains one at a time: every
mini-batch of an epoch for block 1, then for block 2, …. With ``train.offload`` only that one is in
memory, with the readout that steps beside it. The others lie on a *shelf*, a folder beside the
group's checkpoint: ``block-3.24.safetensors`` is block 3 with its optimizer state, as it was put
there before update 24. A block not visited yet has no file, since it is made from its name.

The checkpoint lists the files that it belongs with, by position. They are written before it, and
what it lists is deleted only when it is no longer the last one on the disk nor the one before that.
So there are at most three files a block, and a process killed at any moment leaves a checkpoint
whose files are all there.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.build import unit_names
from noprop.config import RunConfig
from noprop.methods.base import LossTerms, Unit
from noprop.training.checkpoint import DamagedError, check_fingerprint, load_tensors, save_tensors

__all__ = ["Shelf", "Waiting", "read_checkpoint", "units_apart", "units_wait", "whole_checkpoint"]

FOLDER = "waiting"


def units_wait(config: RunConfig) -> bool:
    """Whether units wait in files: if told to, and where several are one group."""
    return config.train.offload and units_apart(config)


def units_apart(config: RunConfig) -> bool:
    """Whether each unit of a group has a file of its own beside the checkpoint.

    Those that wait do, and those that may be trained by as many processes: where W_Embed is learned
    and all units take a mini-batch at the same time.
    """
    several = config.method.learned and len(unit_names(config)) > 1
    return several and (config.train.offload or config.train.order == "parallel")


class Waiting(Unit):
    """The place of a block that is not in memory: its name, without weights.

    Its part in an epoch is a block's, which is what :class:`Unit` has by default.
    """

    def __init__(self, name: str):
        self.name = name
        self.module = nn.Module()

    def loss(
        self, x: Float[Tensor, "images ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """There is none: whoever trains a block brings it into memory first."""
        raise AssertionError(f"{self.name} is not in memory")


class Shelf:
    """The files of the blocks that wait, and which of them count.

    Args:
        checkpoint: of the group; the shelf is a folder beside it.
        build: makes a unit of the group as it is before training, on its device, given its name.
        fingerprint: of the settings and the data; a file with another is refused.

    Attributes:
        positions: of each block that has a file, the update before which it was last put there.
    """

    def __init__(self, checkpoint: Path, build: Callable[[str], Unit], fingerprint: str = ""):
        self.checkpoint, self.build, self.fingerprint = checkpoint, build, fingerprint
        self.positions: dict[str, int] = {}
        self.listed: dict[str, int] = {}  # in the checkpoint on the disk: not to be deleted
        self.older: dict[str, int] = {}  # in the one before it: nor these

    def put(self, name: str, position: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a unit as it is before update ``position``."""
        before = self.positions.get(name)
        if before == position:  # unchanged since it was put there
            return
        save_tensors(self._file(name, position), tensors, {"fingerprint": self.fingerprint})
        self.positions[name] = position
        if before is not None and before != self.listed.get(name):
            self._file(name, before).unlink(missing_ok=True)

    def take(self, name: str) -> tuple[Unit, dict[str, Tensor]]:
        """A unit as it is before training, and what was last put there of it."""
        return self.build(name), self.tensors(name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What was last put there of a unit: nothing at first.

        Raises:
            RunError: If its file is gone, damaged, or of another run.
        """
        if name not in self.positions:
            return {}
        path = self._file(name, self.positions[name])
        tensors, about = load_tensors(path)
        check_fingerprint(path, about, self.fingerprint)
        return tensors

    def begin(
        self, positions: Mapping[str, int], older: Mapping[str, int], *, delete: bool = True
    ) -> None:
        """Count the files that a checkpoint lists, and the one before; delete the others.

        Args:
            positions: of the checkpoint that is gone on from, none where there is none.
            older: of the one before it.
            delete: for one process of those that train the group.
        """
        self.positions = dict(positions)
        self.listed = dict(older)
        self.settle(delete=delete)

    def settle(self, *, delete: bool = True) -> None:
        """Delete every file but those that count: the two checkpoints on the disk list these."""
        self.older, self.listed = self.listed, dict(self.positions)
        if not delete:
            return
        kept = {self._file(*i) for part in (self.older, self.listed) for i in part.items()}
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path not in kept:
                path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return self.checkpoint.parent / FOLDER

    def _file(self, name: str, position: int) -> Path:
        return _file(self.checkpoint, name, position)


def _file(checkpoint: Path, name: str, position: int) -> Path:
    return checkpoint.parent / FOLDER / f"{name}.{position}.safetensors"


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a group's checkpoint, and what it says; each file that it lists is whole.

    Raises:
        DamagedError: If one of the files is missing or damaged.
    """
    tensors, about = load_tensors(checkpoint)
    for name, position in about.get("waiting", {}).items():
        path = _file(checkpoint, name, position)
        if not path.exists():
            raise DamagedError(f"{path}: is missing, and {checkpoint} goes on from it")
        load_tensors(path)
    return tensors, about


def whole_checkpoint(checkpoint: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a group's checkpoint, then those of each unit that it lists as waiting.

    Raises:
        RunError: If a file is missing or damaged.
    """
    tensors, about = load_tensors(checkpoint)
    yield tensors
    for name, position in about.get("waiting", {}).items():
        yield load_tensors(_file(checkpoint, name, position))[0]
