"""Training the groups of a run in this process: each one that no other process holds.

Any number of processes do this in one run folder at the same time, on any machine that sees it. A
*group* is what can be trained separately: a unit, or all units when W_Embed is learned. Groups
exchange nothing, so which process trains one changes nothing in its result.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig
from noprop.data import Examples, balanced_weights
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.files import write_whole
from noprop.machine import choose_device, malloc_keeps_memory, use_bf16
from noprop.methods.base import Method, Unit
from noprop.run.initial import start_units, tensors_of
from noprop.run.locks import BusyError, hold, remove_half_written
from noprop.run.metrics import recorder
from noprop.run.units import COUPLED, group_folder, group_lock, state_of
from noprop.task import Task
from noprop.tensor_files import encode, load_tensors
from noprop.training.events import Emit
from noprop.training.mesh import ALONE, Mesh
from noprop.training.signals import stop_if_asked
from noprop.training.state import Parked
from noprop.training.trainer import Trainer
from noprop.version import __version__

__all__ = ["Job", "group_trainer", "train_group", "units_wait", "work_on"]

# Seconds to wait for the lock of a group: to see whether it is free, a process holds it for a
# moment. One of many groups is not waited for, since the next one may be free.
PATIENCE = 0.5


@dataclass(frozen=True)
class Job:
    """A run, as it is sent to the processes that train its groups.

    Attributes:
        config: Configuration, without ``auto``.
        task: Shape of the data.
        folder: The run folder.
        fingerprint: Digest of the settings and the data.
        train: Training part.
        validation: Validation part.
        embedding: W_Embed before training, shape (m, d).
        encoder: The user's own encoder.
        initial: Content of the file that the run starts from, in bytes; empty for none.
        version: Version of the package that made the job.
    """

    config: RunConfig
    task: Task
    folder: Path
    fingerprint: str
    train: Examples
    validation: Examples
    embedding: Tensor
    encoder: EncoderFactory | None = None
    initial: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    version: str = __version__

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the job, in the order that :meth:`with_tensors` takes."""
        parts = [self.train.x, self.train.y, self.validation.x, self.validation.y]
        return [*parts, self.embedding, self.initial]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Job":
        """Return the job with other tensors."""
        x, y, validation_x, validation_y, embedding, initial = tensors
        return replace(
            self,
            train=Examples(x, y),
            validation=Examples(validation_x, validation_y),
            embedding=embedding,
            initial=initial,
        )

    def without_tensors(self) -> "Job":
        """Return the job with empty tensors: small enough to send."""
        return self.with_tensors([tensor[:0].clone() for tensor in self.tensors])

    def write_tensors(self, path: Path) -> None:
        """Write the tensors to a file, for other processes."""
        tensors = {str(i): tensor for i, tensor in enumerate(self.tensors)}
        write_whole(path, encode(tensors, {}, digest=False))

    def read_tensors(self, path: Path) -> "Job":
        """Return the job with the tensors that :meth:`write_tensors` wrote."""
        tensors, _ = load_tensors(path)
        return self.with_tensors([tensors[str(i)] for i in range(len(tensors))])


def work_on(job: Job, groups: Sequence[str], emit: Emit, mesh: Mesh = ALONE) -> None:
    """Train every group that no other process holds, from its last checkpoint to its end.

    Args:
        job: The run.
        groups: Names of the groups, in the order in which they are tried.
        emit: Called with every event, after it is written to ``metrics.jsonl``.
        mesh: The processes that train each group together.

    Raises:
        NoPropError: If a group cannot be trained; its last checkpoint is kept.
    """
    record = recorder(job.folder, emit)
    with _threads_of(job.config), malloc_keeps_memory():
        for group in groups:
            stop_if_asked()
            if mesh.is_alone and state_of(job.folder, group, job.fingerprint, files=True).finished:
                continue  # by another process, meanwhile
            patience = 0.0 if mesh.is_alone and len(groups) > 1 else PATIENCE
            train_group(job, group, record, mesh, patience=patience)


def train_group(
    job: Job,
    group: str,
    emit: Emit,
    mesh: Mesh = ALONE,
    *,
    patience: float = PATIENCE,
    saved: Callable[[], None] = lambda: None,
) -> bool:
    """Train one group in this process, from its last checkpoint, alone or in a mesh.

    Args:
        job: The run.
        group: Name of the group.
        emit: Called with every event.
        mesh: The processes that train the group.
        patience: Seconds to wait for the lock of the group.
        saved: Called after each checkpoint.

    Returns:
        Whether the group is trained; False if another process holds its lock.
    """
    if job.version != __version__:  # the package was replaced while its worker started
        raise RunError(f"worker: has noprop {__version__}, wanted {job.version} of its parent")
    with ExitStack() as held:
        if not mesh.broadcast(not mesh.writes or _is_held(job.folder, group, held, patience)):
            return False
        trainer = group_trainer(job, group, emit, mesh, saved)
        trainer.resume()
        if not trainer.is_finished:
            trainer.run()
    return True


def _is_held(folder: Path, group: str, held: ExitStack, patience: float) -> bool:
    """Take the lock of a group into ``held`` and tidy its folder; return whether it was free."""
    lock = group_lock(folder, group)
    try:
        held.enter_context(hold(lock, f"{group}: another process is training it", patience))
    except BusyError:
        return False
    remove_half_written(lock.parent)
    return True


def group_trainer(
    job: Job,
    group: str,
    emit: Emit,
    mesh: Mesh = ALONE,
    saved: Callable[[], None] = lambda: None,
) -> Trainer:
    """Return the trainer of a group, before its first update; ``mesh`` has the other processes."""
    device = choose_device(job.config.train.device)
    embedding = build_embedding(job.config, job.task, None)
    embedding.load_state_dict({"weight": job.embedding})
    embedding.to(device)
    initial = tensors_of(job.initial)

    def build(only: str | None) -> tuple[Method, dict[str, Unit]]:
        method = build_method(job.config, job.task, embedding, factory=job.encoder, only=only)
        units = {u.name: u for u in method.units if only in (None, u.name)}
        start_units(units.values(), initial)
        for unit in units.values():
            unit.module.to(device)
            if job.config.train.channels_last:
                unit.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return method, units

    # Those in memory at the start: None for all of the group.
    names = sorted(mesh.units) if group == COUPLED and mesh.units else [None]
    if units_wait(job.config):
        names = job.config.method.quick_units
    method, here = build(group if group != COUPLED else names[0])
    for name in names[1:]:
        here |= build(name)[1]
    wanted = job.config.method.unit_names if group == COUPLED else [group]
    units = [here.get(name) or Parked(name) for name in wanted]
    train, balanced = job.train.to(device), job.config.train.class_weights == "balanced"
    return Trainer(
        job.config,
        method,
        units,
        train,
        job.validation.to(device),
        job.task.normalization,
        bf16=use_bf16(job.config.train.precision, device),
        folder=group_folder(job.folder, group),
        fingerprint=job.fingerprint,
        build=lambda name: build(name)[1][name],
        mesh=mesh,
        emit=emit,
        saved=saved,
        weights=balanced_weights(train.y) if balanced else None,
    )


def units_wait(config: RunConfig) -> bool:
    """Return whether units are parked in files: with ``train.offload``, if a group has several."""
    return config.train.offload and config.method.learned and len(config.method.unit_names) > 1


@contextmanager
def _threads_of(config: RunConfig) -> Iterator[None]:
    """Compute with the threads of the run: sums then have one order in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.train.threads or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
