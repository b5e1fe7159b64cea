"""Training one group of units, resumable at any mini-batch.

A *group* is what must be trained together: a single unit when nothing is shared, all of them when
W_Embed is learned or the units read each other's outputs. Its work is a numbered list of updates
(:mod:`noprop.training.plan`); its state after update n is a function of n, whichever process makes
the updates. So a checkpoint is weights, optimizer state and n.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from noprop.config import RunConfig
from noprop.data import Examples, Normalization, batch_indices
from noprop.errors import ConfigError, RunError, TrainingError
from noprop.machine import reset_peak
from noprop.methods.base import LossTerms, Method, Unit
from noprop.randomness import generator
from noprop.training.events import Damaged, Emit, Epoch
from noprop.training.gradients import Gradients, flat_gradient, scatter
from noprop.training.mesh import ALONE, Mesh, PeerStoppedError, Requests
from noprop.training.optimizers import learning_rate
from noprop.training.plan import Plan, Update
from noprop.training.reports import Reports
from noprop.training.signals import asked, signals_kept, stop_if_asked
from noprop.training.state import GroupState

__all__ = ["Trainer"]

PROGRESS_EVERY = 0.5  # seconds between reports of mere progress


class Trainer:
    """Trains a group of units, or those of them that this process of a mesh has.

    Args:
        config: The run.
        method: Method whose shared parameters are trained with the group.
        units: The group, with a :class:`~noprop.training.state.Parked` for each unit that is not
            in memory.
        train: Training part, on the device.
        validation: Validation part, on the device; its local losses are reported, and stop the
            training with ``train.patience``.
        normalization: Normalization of inputs.
        bf16: Whether convolutions and products run in bf16.
        folder: Folder of the group, for its commits.
        fingerprint: Digest of the settings and the data; a commit with another is refused.
        build: Makes a unit as it is before training, given its name, for units that are parked.
        mesh: The processes that train the group.
        emit: Called with every event.
        saved: Called after each commit.
        weights: Weights of the training examples in the losses, shape (N,), for units that take
            them; all 1 unless given.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        units: Sequence[Unit],
        train: Examples,
        validation: Examples,
        normalization: Normalization,
        *,
        bf16: bool,
        folder: Path,
        emit: Emit,
        fingerprint: str = "",
        build: Callable[[str], Unit] | None = None,
        mesh: Mesh = ALONE,
        saved: Callable[[], None] = lambda: None,
        weights: Tensor | None = None,
    ):
        self.c, self.method, self.mesh = config.train, method, mesh
        self.shared = method.shared_parameters
        if self.c.shards > 1 and len(train) < 2 * self.c.shards:
            raise ConfigError(
                f"train.shards: each of {self.c.shards} needs at least two examples, and there are "
                f"{len(train)} to train on"
            )
        if weights is not None and config.method.unweighted:
            raise ConfigError(f"weights: not for {config.method.name}: {config.method.unweighted}")
        self.train_part, self.folder = train, folder
        self.emit, self.after_save = emit, saved
        self.device = train.x.device
        self.state = GroupState(
            self.c, method, units, folder=folder, fingerprint=fingerprint, build=build, mesh=mesh
        )
        self.is_stack = config.method.stack
        stack = method if self.is_stack else None
        self.gradients = Gradients(
            self.c, train, normalization, bf16=bf16, mesh=mesh, stack=stack, weights=weights
        )
        self.plan = Plan(
            units,
            order="stack" if self.is_stack else self.c.order,
            epochs=self.c.epochs,
            batches=max(1, len(train) // self.c.batch_size),
            shared=bool(self.shared),
        )
        self.reports = Reports(
            self.c, method, self.state, self.plan, self.gradients, validation, emit
        )
        self.position = 0
        self.committed: int | None = None  # position of the last commit
        self.parts: list[Tensor] = []  # of the shared gradient, one for each unit since its update
        self.seconds = 0.0  # of training, in the processes before this one
        self.started = self.saved = time.monotonic()
        self.is_updating = False  # weights and position may disagree
        self.requests = Requests()  # of the mesh, at the last update
        self.order: tuple[tuple[int, str], Int64[Tensor, "batches batch"]] | None = None

    @property
    def units(self) -> list[Unit]:
        """The group, with a :class:`Parked` for each unit that is not in memory."""
        return self.state.units

    @property
    def is_finished(self) -> bool:
        """Whether every update is made."""
        return self.position == self.plan.total

    # -- training ------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the current position to the end, with a commit now and then.

        An exception that ``emit`` raises to stop the training leaves a commit of the update before;
        a signal inside an update leaves the last commit there was.
        """
        for unit in self.units:
            unit.module.train()
        reset_peak(self.device)
        self.started = self.saved = time.monotonic()
        reported = 0.0
        running: dict[str, list[Tensor]] = {unit.name: [] for unit in self.units}
        ended: list[tuple[Update, Tensor, LossTerms]] = []
        with self._saved_when_stopped():
            while not self.is_finished:
                update, terms = self.step()
                losses = running[self.units[update.unit].name]
                losses.append(terms.total.detach())
                is_whole = self.plan.begins_mini_batch(self.position)
                ends, due = self.plan.ends_epoch(update), is_whole and self.requests.save
                now, position = time.monotonic(), self.position
                if ends:
                    ended.append((update, torch.stack(losses), terms))
                epochs = []
                if ended and (is_whole or not self.is_stack):  # a stack's units end together
                    epochs = self._judged(ended)
                    ended.clear()
                if ends or due or now - reported > PROGRESS_EVERY:
                    reported = now
                    self.reports.progress(update, position, running)
                if ends:
                    losses.clear()
                for epoch in epochs:
                    self.reports.tell(epoch)
                keep = self._epoch_to_keep() if is_whole else None
                if due or keep:
                    self.save(keep_as_epoch=keep)
                if is_whole and (self.requests.stop or (self.mesh.is_alone and asked())):
                    self._stop()
            if self.committed != self.position:
                self.save()
            self.reports.end(self._seconds())

    @contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        """Keep signals until an update ends, and commit when an exception stops this block."""
        try:
            with signals_kept():
                yield
            stop_if_asked()
        except TrainingError:
            raise
        except BaseException:
            whole = not self.is_updating and self.plan.begins_mini_batch(self.position)
            if whole and self.mesh.is_alone and self.state.not_finite() is None:
                self.save()
            raise

    def _judged(self, ended: Sequence[tuple[Update, Tensor, LossTerms]]) -> list[Epoch]:
        """Return the epochs of units that have ended one, and stop a group without patience left.

        Nothing is emitted or committed before the group is judged: a commit of this position says
        that it was.
        """
        self.is_updating = self.c.patience > 0
        epochs = self.reports.epochs(ended)
        number, rest = divmod(self.position, len(self.plan.rows))
        if self.c.patience and not rest:
            patience = self.state.patience
            if patience.improves(number, self.reports.group_loss(epochs)):
                self.state.keep_best()
            self.state.touch()
            if patience.is_over or self.is_finished:
                self.state.restore_best()
                self.position = self.plan.total
        self.is_updating = False
        return epochs

    def step(self) -> tuple[Update, LossTerms]:
        """Make the next update of this process, and what follows from it.

        Where units share parameters and other processes have the rest of the mini-batch, this waits
        for them after the last update of this process in it.
        """
        self.is_updating = True
        while not self.state.is_mine[self.plan.at(self.position).unit]:
            self.position += 1
        update = self.plan.at(self.position)
        if self.state.optimizers[update.unit] is None:
            self._check_finite()
            self.state.load(update.unit, self.position)
        unit, number = self.units[update.unit], self.plan.step(update)
        terms, self.requests = self.gradients.backward(
            unit, self.shared, self.indices(update), number, self._own_requests()
        )
        lr = learning_rate(self.c, self.plan.progress(update))
        self.state.update(update.unit, lr, number)
        if self.shared:
            part = flat_gradient(self.shared)
            self.parts.append(part * unit.coupling if self.c.order == "parallel" else part)
            for p in self.shared:
                p.grad = None
        self.position = self._next_position()
        if self.state.shared_optimizer and self.plan.begins_mini_batch(self.position):
            self._update_shared()
        self.is_updating = False
        return update, terms

    def _next_position(self) -> int:
        """Return the next update of this process in the mini-batch, or the end of that."""
        position = self.position + 1
        while not self.plan.begins_mini_batch(position):
            if self.state.is_mine[self.plan.at(position).unit]:
                break
            position += 1
        return position

    def indices(self, update: Update) -> Int64[Tensor, " batch"]:
        """Return the examples of an update."""
        key = self.plan.shuffle(update)
        if self.order is None or self.order[0] != key:
            shuffle = generator(self.c.seed, "order", *key)
            order = batch_indices(len(self.train_part), self.c.batch_size, shuffle)
            self.order = key, order.to(self.device)
        return self.order[1][update.batch]

    def _update_shared(self) -> None:
        """Descend the sum of the gradients of the mini-batch's losses."""
        total, self.requests = self.mesh.sum_over_units(self.parts, self.requests)
        self.parts.clear()
        for p in self.shared:
            p.grad = torch.empty_like(p)
        scatter(total, [p.grad for p in self.shared if p.grad is not None])
        progress = (self.position - 0.5) / self.plan.total
        number = self.plan.mini_batches(self.position) - 1
        self.state.update_shared(learning_rate(self.c, progress), number)

    # -- stopping and saving -------------------------------------------------------------------

    def _seconds(self) -> float:
        """Return the seconds of training until now, those of earlier processes included."""
        return self.seconds + time.monotonic() - self.started

    def _own_requests(self) -> Requests:
        """Return what this process requests after the current update."""
        due = self.mesh.writes and time.monotonic() - self.saved > self.c.checkpoint_every
        return Requests(due, asked())

    def _epoch_to_keep(self) -> int | None:
        """Return the epoch that has just ended for the whole group, if its weights are kept."""
        epoch, rest = divmod(self.position, len(self.plan.rows))
        due = self.c.keep_every and not rest
        return epoch if due and (epoch % self.c.keep_every == 0 or self.is_finished) else None

    def _stop(self) -> None:
        """Leave with a commit, because this process or another of the mesh was asked to."""
        if not self.mesh.is_alone:  # else :meth:`run` writes it
            self.save()
        stop_if_asked()
        raise PeerStoppedError

    def _check_finite(self) -> None:
        # A finite loss can have an infinite gradient: such weights must not replace good ones.
        if name := self.state.not_finite():
            raise self.reports.diverged(f"{name}: the weights are", self.position)

    def save(self, *, keep_as_epoch: int | None = None) -> None:
        """Commit weights, optimizer states and the position.

        Raises:
            TrainingError: If a weight is not finite; the commit before is kept.
        """
        self._check_finite()
        self.state.commit(
            self.position, self.plan.total, self._seconds(), keep_as_epoch=keep_as_epoch
        )
        self.committed, self.saved = self.position, time.monotonic()
        self.after_save()

    def resume(self) -> None:
        """Load the last commit that is whole, if there is one.

        Raises:
            RunError: If it belongs to another architecture, length of training, settings or data.
        """
        found = self.state.resume(self.plan.total)
        self.position = found.commit.position if found else 0
        if self.mesh.broadcast(self.position) != self.position:
            raise RunError(
                f"{self.folder}: its checkpoint is of update {self.position} here, and of another "
                "for the process that writes it; the file system lags behind, start again"
            )
        if found is None:
            return
        self.committed, self.seconds = self.position, found.commit.seconds
        if found.damage and self.mesh.writes:
            self.emit(
                Damaged(
                    [unit.name for unit in self.units],
                    reason=found.damage,
                    position=self.position,
                    total=self.plan.total,
                )
            )
