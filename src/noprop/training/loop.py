"""Training one group of units, resumable at any step.

A *group* is what must be trained together: a single unit when nothing is shared, all of them when
W_Embed is learned. Its work is a numbered list of updates (:mod:`noprop.training.updates`); its
state after update n is a function of n, whoever makes the updates. So a checkpoint is weights,
optimizer state and n.
"""

import time
from collections.abc import Callable, Sequence
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
from noprop.training.events import Damaged, Emit
from noprop.training.gradients import Gradients, flat_gradient, scatter
from noprop.training.offload import Shelf
from noprop.training.reports import Reports
from noprop.training.signals import asked, signals_kept, stop_if_asked
from noprop.training.state import GroupState
from noprop.training.team import SAVE, STOP, PeerStoppedError, Team
from noprop.training.updates import Update, Updates

__all__ = ["GroupTrainer"]


class GroupTrainer:
    """Trains a group of units, or those of them that this process of a team has.

    Args:
        config: the run.
        method: whose shared parameters are trained with the group.
        units: the group.
        train: training part, on the device.
        validation: validation part, on the device; its local losses are reported, nothing else.
        normalization: of inputs.
        bf16: whether convolutions and products run in bf16.
        checkpoint: the group's file.
        fingerprint: of the settings and the data; a checkpoint with another is refused.
        shelf: where units have files of their own; ``units`` then has a :class:`Waiting` in the
            place of each that is not in memory.
        team: who trains the group; this process alone unless given.
        emit: called with every event.
        saved: called after each checkpoint.
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
        checkpoint: Path,
        emit: Emit,
        fingerprint: str = "",
        shelf: Shelf | None = None,
        team: Team | None = None,
        saved: Callable[[], None] = lambda: None,
    ):
        self.config, self.c, self.method = config, config.train, method
        self.team = team or Team(self.c.shards or 1)
        if self.team.all_shards > 1 and len(train) < 2 * self.team.all_shards:
            raise ConfigError(
                f"train.shards: each of {self.team.all_shards} wants two examples at least, and "
                f"there are {len(train)} to train on"
            )
        self.train_part = train
        self.checkpoint, self.emit, self.after_save = checkpoint, emit, saved
        self.device = train.x.device
        self.state = GroupState(
            self.c,
            method,
            units,
            checkpoint=checkpoint,
            fingerprint=fingerprint,
            shelf=shelf,
            team=self.team,
        )
        self.gradients = Gradients(self.c, train, normalization, bf16=bf16, team=self.team)
        self.updates = Updates(
            tuple(units),
            order=self.c.order,
            epochs=self.c.epochs,
            batches=max(1, len(train) // self.c.batch_size),
            shared=bool(method.shared_parameters),
        )
        self.reports = Reports(
            self.c,
            method,
            self.state,
            self.updates,
            self.gradients,
            validation,
            self.team,
            emit,
        )
        self.position = 0
        self.parts: list[Tensor] = []  # of the shared gradient, one for each unit since its update
        self.seconds = 0.0  # of training, in the processes before this one
        self.started = self.saved = time.monotonic()
        self.stepping = False  # inside an update: weights and position may disagree
        self.wished = 0  # by the team, at the last update
        self.order: tuple[tuple[int, str], Int64[Tensor, "batches batch"]] | None = None

    @property
    def units(self) -> list[Unit]:
        """The group, with a :class:`Waiting` for each unit that is not in memory."""
        return self.state.units

    # -- training ------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the current position to the end, with a checkpoint now and then.

        Whatever ``emit`` raises, to stop the training, leaves a checkpoint of the update before; a
        signal inside an update leaves the last one there was.
        """
        for unit in self.units:
            unit.module.train()
        try:
            with signals_kept():
                self._run()
            stop_if_asked()
        except TrainingError:
            raise
        except BaseException:
            whole = not self.stepping and self.updates.between_steps(self.position)
            if whole and self.team.is_alone and self.state.not_finite() is None:
                self.save()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether every update is made."""
        return self.position == self.updates.total

    def step(self) -> tuple[Update, LossTerms]:
        """Make the next update that is this process's, and what follows from it.

        Where units share parameters and other processes have the rest of the mini-batch, they are
        waited for after the last update of this one in it.
        """
        self.stepping = True
        while not self.state.has(self.updates.at(self.position).index):
            self.position += 1
        at = self.updates.at(self.position)
        if self.state.waits(at.index):
            self._check_finite()
            self.state.bring(at.index, self.position)
        terms = self._step(at)
        self.position = self._after(self.position)
        if self.state.shared_optimizer and self.updates.between_steps(self.position):
            self._step_shared(self.state.shared_optimizer)
        self.stepping = False
        return at, terms

    def _after(self, position: int) -> int:
        """The next update of this process in the mini-batch, or the end of that."""
        position += 1
        while not self.updates.between_steps(position):
            if self.state.has(self.updates.at(position).index):
                break
            position += 1
        return position

    def indices(self, update: Update) -> Int64[Tensor, " batch"]:
        """The examples of an update."""
        key = self.updates.shuffle(update)
        if self.order is None or self.order[0] != key:
            shuffle = generator(self.c.seed, "order", *key)
            order = batch_indices(len(self.train_part), self.c.batch_size, shuffle)
            self.order = key, order.to(self.device)
        return self.order[1][update.batch]

    def _run(self) -> None:
        reset_peak(self.device)
        self.started = self.saved = time.monotonic()
        reported = 0.0
        running: dict[str, list[Tensor]] = {unit.name: [] for unit in self.units}
        while self.position < self.updates.total:
            at, terms = self.step()
            losses = running[self.units[at.index].name]
            losses.append(terms.total.detach())
            now = time.monotonic()
            ends = self.updates.ends_epoch(at)
            due = self.updates.between_steps(self.position) and self.wished % STOP > 0
            if ends or due or now - reported > 0.5:
                reported = now
                self.reports.progress(at, self.position, running)
            if ends:
                self.reports.epoch(at, torch.stack(losses), terms)
                losses.clear()
                self._keep(at)
            if due:
                self._check_finite()
                self.save()
            if self.updates.between_steps(self.position) and self._must_stop():
                self._stop()
        self._check_finite()
        self.save()
        self.reports.end(self._seconds())

    def _seconds(self) -> float:
        """Of training until now, those of the processes before this one included."""
        return self.seconds + time.monotonic() - self.started

    def _keep(self, at: Update) -> None:
        """Leave a copy of the unit of an epoch's last update, where copies are kept."""
        epoch = at.epoch + 1
        due = self.c.keep_every and (epoch % self.c.keep_every == 0 or epoch == self.c.epochs)
        if due and self.team.speaks:
            self.state.keep(at.index, {"epoch": epoch, "seconds": self._seconds()})

    def _wish(self) -> int:
        """What this process would have the team do after the update at hand."""
        due = self.team.leads and time.monotonic() - self.saved > self.c.checkpoint_every
        return SAVE * due + STOP * asked()

    def _must_stop(self) -> bool:
        return self.wished >= STOP or (self.team.is_alone and asked())

    def _stop(self) -> None:
        """Leave with a checkpoint, because this process or another of the team was asked to."""
        if not self.team.is_alone:  # else whoever is called back writes it
            self._check_finite()
            self.save()
        stop_if_asked()
        raise PeerStoppedError

    def _check_finite(self) -> None:
        # A finite loss can have an infinite gradient: such weights must not replace good ones.
        if name := self.state.not_finite():
            raise self.reports.diverged(f"{name}: the weights are", self.position)

    def _step(self, at: Update) -> LossTerms:
        unit, optimizer = self.units[at.index], self.state.optimizers[at.index]
        shared = self.method.shared_parameters
        assert optimizer
        terms, self.wished = self.gradients.backward(
            unit, shared, self.indices(at), self.updates.step(at), self._wish()
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if shared:
            part = flat_gradient(shared)
            self.parts.append(part * unit.coupling if self.c.order == "parallel" else part)
            for p in shared:
                p.grad = None
        return terms

    def _step_shared(self, optimizer: torch.optim.Optimizer) -> None:
        """Descend the sum of the gradients that the mini-batch's losses have left."""
        total, self.wished = self.team.fold(self.parts, self.wished)
        self.parts.clear()
        for p in self.method.shared_parameters:
            p.grad = torch.empty_like(p)
        scatter(total, [p.grad for p in self.method.shared_parameters if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write weights, optimizer state and the position."""
        self.state.save(
            {
                "position": self.position,
                "total": self.updates.total,
                "seconds": self._seconds(),
            }
        )
        self.saved = time.monotonic()
        self.after_save()

    def resume(self) -> None:
        """Take up the last checkpoint that is whole, if there is one.

        Raises:
            RunError: If it belongs to another architecture or length of training, or to a training
                in which units did not wait as they do in this one.
        """
        found = self.state.resume(self.updates.total)
        self.position = found.content["position"] if found else 0
        if self.team.share(self.position) != self.position:
            raise RunError(
                f"{self.checkpoint}: is of update {self.position} here, and of another for the "
                "process that writes it; the file system is behind, start again"
            )
        if found is None:
            return
        self.seconds = float(found.content.get("seconds", 0.0))
        if found.trouble and self.team.leads:
            names = [unit.name for unit in self.units]
            self.emit(Damaged(names, found.trouble, self.position, self.updates.total))
