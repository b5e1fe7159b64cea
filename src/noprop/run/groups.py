"""Groups of units, which are what can be trained apart, and the training of one in this process.

A group is a unit, or all of them when W_Embed is learned. Blocks share and exchange nothing: which
process trains a group changes nothing in its result.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from noprop.build import Task, build_embedding, build_method, choose_device, unit_names, use_bf16
from noprop.config import RunConfig
from noprop.data import Examples
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.files import write_whole
from noprop.machine import threads_per_process
from noprop.methods.base import Method, Unit
from noprop.run.locks import BusyError, hold, remove_half_written
from noprop.tensor_files import encode, load_tensors
from noprop.training.events import Busy, Emit, Followed, Found
from noprop.training.layout import Layout
from noprop.training.mesh import ALONE, Mesh
from noprop.training.state import Parked
from noprop.training.trainer import Trainer
from noprop.version import __version__

__all__ = [
    "COUPLED",
    "Job",
    "Material",
    "Work",
    "group_folder",
    "group_lock",
    "group_trainer",
    "groups_of",
    "share_of_groups",
    "thread_count",
    "train_group",
    "units_wait",
]

COUPLED = "all"
# Seconds that a group's lock is tried: whoever looks whether it is free holds it for a moment.
PATIENCE = 0.5


@dataclass(frozen=True)
class Material:
    """What every group is trained on.

    Attributes:
        train: training part.
        validation: validation part.
        embedding: W_Embed before training, shape (m, d).
    """

    train: Examples
    validation: Examples
    embedding: Tensor

    def pack(self, path: Path) -> None:
        """Write it to a file, for other processes of this machine."""
        parts = {"train": self.train, "validation": self.validation}
        tensors = {f"{k}/{axis}": getattr(p, axis) for k, p in parts.items() for axis in "xy"}
        write_whole(path, encode({**tensors, "embedding": self.embedding}, {}, digest=False))

    @classmethod
    def unpack(cls, path: Path) -> "Material":
        """Read what :meth:`pack` wrote."""
        tensors, _ = load_tensors(path)
        train, validation = (
            Examples(tensors[f"{part}/x"], tensors[f"{part}/y"]) for part in ("train", "validation")
        )
        return cls(train, validation, tensors["embedding"])


@dataclass(frozen=True)
class Job:
    """What a process needs to train groups, besides the material: small enough to send."""

    config: RunConfig
    task: Task
    folder: Path
    fingerprint: str
    factory: EncoderFactory | None = None
    version: str = __version__


@dataclass(frozen=True)
class Work:
    """Groups of one run that are to be trained.

    Attributes:
        job: the run.
        material: what they are trained on.
        groups: their names.
        emit: called with every event of theirs.
    """

    job: Job
    material: Material
    groups: Sequence[str]
    emit: Emit


def groups_of(config: RunConfig) -> list[str]:
    """The groups that can be trained apart: each unit, or all at once when W_Embed is learned."""
    return [COUPLED] if config.method.learned else unit_names(config)


def share_of_groups(config: RunConfig, layout: Layout, rank: int) -> list[str]:
    """The groups that a process of a layout trains, alone or with others."""
    return [COUPLED] if config.method.learned else list(layout.share(rank))


def group_folder(folder: Path, group: str) -> Path:
    """The folder of a group, with its commits, in a run folder."""
    return folder / "units" / group


def units_wait(config: RunConfig) -> bool:
    """Whether units are parked in files: if told to, and where several are one group."""
    return config.train.offload and config.method.learned and len(unit_names(config)) > 1


def group_lock(folder: Path, group: str) -> Path:
    """The lock of whoever trains a group."""
    return folder / "units" / group / ".lock"


def thread_count(config: RunConfig) -> int:
    """Threads of each training process: as many as asked for.

    Else one, since blocks over processes use all cores better; but a method of one unit has nothing
    to spread, and is given as many as torch would take, divided among its shards.
    """
    alone = len(unit_names(config)) == 1
    return config.train.threads or (threads_per_process(config.train.shards) if alone else 1)


def group_trainer(
    job: Job,
    material: Material,
    group: str,
    emit: Emit,
    mesh: Mesh = ALONE,
    saved: Callable[[], None] = lambda: None,
) -> Trainer:
    """Return the trainer of a group, before its first update; ``mesh`` has the other processes."""
    device = choose_device(job.config.train.device)
    embedding = build_embedding(job.config, job.task, None)
    embedding.load_state_dict({"weight": material.embedding})
    embedding.to(device)

    def build(only: str | None) -> tuple[Method, dict[str, Unit]]:
        method = build_method(job.config, job.task, embedding, factory=job.factory, only=only)
        units = {u.name: u for u in method.units if only in (None, u.name)}
        for unit in units.values():
            unit.module.to(device)
            if job.config.train.channels_last:
                unit.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return method, units

    # Those in memory at the start: None for all of the group.
    names = sorted(mesh.units) if group == COUPLED and mesh.units else [None]
    if units_wait(job.config):
        names = ["readout"]
    method, here = build(group if group != COUPLED else names[0])
    for name in names[1:]:
        here |= build(name)[1]
    wanted = unit_names(job.config) if group == COUPLED else [group]
    units = [here.get(name) or Parked(name) for name in wanted]
    return Trainer(
        job.config,
        method,
        units,
        material.train.to(device),
        material.validation.to(device),
        job.task.normalization,
        bf16=use_bf16(job.config.train.precision, device),
        folder=group_folder(job.folder, group),
        fingerprint=job.fingerprint,
        build=lambda name: build(name)[1][name],
        mesh=mesh,
        emit=emit,
        saved=saved,
    )


def train_group(
    job: Job,
    material: Material,
    group: str,
    emit: Emit,
    mesh: Mesh = ALONE,
    saved: Callable[[], None] = lambda: None,
) -> None:
    """Train one group in this process, from its checkpoint if it has one, alone or in a mesh.

    The last event says what came of it: ``trained``, ``found`` where another process was faster,
    ``busy`` where one holds its lock, or ``followed`` where another process of the mesh says it.
    ``saved`` is called after each checkpoint.
    """
    if job.version != __version__:  # the package was replaced while its worker started
        raise RunError(f"worker: has noprop {__version__}, wanted {job.version} of its parent")
    end = Busy(group)
    with ExitStack() as held:
        if mesh.broadcast(not mesh.writes or _is_held(job.folder, group, held)):
            trainer = group_trainer(job, material, group, emit, mesh, saved)
            trainer.resume()
            end = Found(group) if trainer.is_finished else None
            if not trainer.is_finished:
                trainer.run()
    if not mesh.reports or (end and not mesh.writes):
        emit(Followed(group))
    elif end:
        emit(end)


def _is_held(folder: Path, group: str, held: ExitStack) -> bool:
    """Whether this process could take a group's lock, which it then keeps; and its place tidied."""
    lock = group_lock(folder, group)
    try:
        held.enter_context(hold(lock, f"{group}: another process is training it", PATIENCE))
    except BusyError:
        return False
    remove_half_written(lock.parent)
    return True
