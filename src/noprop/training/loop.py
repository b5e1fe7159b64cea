"""Training one group of units in one process, resumable at any step.

A *group* is what must be trained together: a single unit when nothing is shared, all of them when
W_Embed is learned. Its work is a numbered list of updates (:mod:`noprop.training.updates`); its
state after update n is a function of n. So a checkpoint is weights, optimizer state and n.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from noprop.config import RunConfig
from noprop.data import Examples, Normalization, augment, batch_indices
from noprop.embeddings import separation
from noprop.errors import RunError, TrainingError
from noprop.layers import channels_last
from noprop.methods.base import LossTerms, Method, Unit
from noprop.randomness import generator
from noprop.training.checkpoint import (
    DamagedError,
    check_fingerprint,
    flatten,
    read_about,
    unflatten,
)
from noprop.training.generations import newest, previous_of, promote, save_generation
from noprop.training.memory import peak_memory, reset_peak
from noprop.training.offload import Shelf, Waiting, read_checkpoint
from noprop.training.optimizers import make_optimizer, optimizer_state, restore_optimizer
from noprop.training.signals import signals_kept, stop_if_asked
from noprop.training.updates import Update, Updates

__all__ = ["GroupTrainer"]

Event = dict[str, Any]


class GroupTrainer:
    """Trains a group of units and keeps its checkpoint.

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
        shelf: where units wait while others are trained; ``units`` then has a :class:`Waiting` in
            the place of each that does.
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
        emit: Callable[[Event], None],
        fingerprint: str = "",
        shelf: Shelf | None = None,
        saved: Callable[[], None] = lambda: None,
    ):
        self.config, self.c = config, config.train
        self.method, self.units, self.shelf = method, list(units), shelf
        self.train_part, self.validation = train, validation
        self.normalization, self.bf16 = normalization, bf16
        self.checkpoint, self.emit, self.fingerprint = checkpoint, emit, fingerprint
        self.saved = saved
        self.device = train.x.device
        self.optimizers = [self._optimizer(unit) for unit in units]
        self.visitor: int | None = None  # the unit in memory that waits at other times
        shared = method.shared_parameters
        self.shared_optimizer = make_optimizer(self.c, shared) if shared else None
        self.updates = Updates(
            tuple(units),
            order=self.c.order,
            epochs=self.c.epochs,
            batches=max(1, len(train) // self.c.batch_size),
            shared=bool(shared),
        )
        self.position = 0
        self.seconds = 0.0  # of training, in the processes before this one
        self.started = time.monotonic()
        self.stepping = False  # inside an update: weights and position may disagree
        self.order: tuple[tuple[int, str], Int64[Tensor, "batches batch"]] | None = None

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
            if whole and self._not_finite() is None:
                self.save()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether every update is made."""
        return self.position == self.updates.total

    def step(self) -> tuple[Update, LossTerms]:
        """Make the update at the current position, and move on to the next."""
        at = self.updates.at(self.position)
        self.stepping = True
        self._bring(at)
        terms = self._step(at)
        self.position += 1
        self.stepping = False
        return at, terms

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
        self.started = saved = time.monotonic()
        reported = 0.0
        running: dict[str, list[Tensor]] = {unit.name: [] for unit in self.units}
        while self.position < self.updates.total:
            at, terms = self.step()
            losses = running[self.units[at.index].name]
            losses.append(terms.total.detach())
            now = time.monotonic()
            ends = self.updates.ends_epoch(at)
            whole = self.updates.between_steps(self.position)
            due = whole and now - saved > self.c.checkpoint_every
            if ends or due or now - reported > 0.5:
                reported = now
                self._report_progress(at, running)
            if ends:
                self._report_epoch(at, torch.stack(losses), terms)
                losses.clear()
            if due:
                self._check_finite()
                self.save()
                saved = now
            if whole:
                stop_if_asked()
        self._check_finite()
        self.save()
        names = [unit.name for unit in self.units]
        memory, counter = peak_memory(self.device)
        self.emit(
            {
                "event": "trained",
                "units": names,
                "seconds": self.seconds + time.monotonic() - self.started,
                "peak_memory_mb": memory,
                "memory_counter": counter,
            }
        )

    def _report_progress(self, at: Update, running: dict[str, list[Tensor]]) -> None:
        for name, losses in running.items():
            if losses and not bool(torch.stack(losses).isfinite().all()):
                raise self._diverged(f"{name}: the loss is")
        unit = self.units[at.index]
        self.emit(
            {
                "event": "progress",
                "unit": unit.name,
                "epoch": at.epoch + 1,
                "position": self.position,
                "total": self.updates.total,
                "work": self.updates.work(self.position),
                "total_work": self.updates.work(self.updates.total),
                "loss": torch.stack(running[unit.name]).mean().item(),
            }
        )

    def _diverged(self, what: str) -> TrainingError:
        epoch = self.updates.at(self.position - 1).epoch + 1
        return TrainingError(
            f"{what} not finite by update {self.position} of {self.updates.total} "
            f"(epoch {epoch}, lr {self.c.lr:g}); its last good checkpoint is kept. "
            "Try a smaller train.lr"
        )

    def _not_finite(self) -> str | None:
        """The first unit with a weight or statistic that is not finite; shared ones count too."""
        shared = {"shared embeddings": self.method.shared}
        for name, module in {**{u.name: u.module for u in self.units}, **shared}.items():
            if not all(bool(v.isfinite().all()) for v in module.state_dict().values()):
                return name
        return None

    def _check_finite(self) -> None:
        # A finite loss can have an infinite gradient: such weights must not replace good ones.
        if name := self._not_finite():
            raise self._diverged(f"{name}: the weights are")

    def _step(self, at: Update) -> LossTerms:
        unit, optimizer = self.units[at.index], self.optimizers[at.index]
        assert optimizer
        draws = generator(self.c.seed, "step", self.updates.step(at), unit.name, self.device)
        indices = self.indices(at)
        x = self.train_part.x[indices] if unit.reads_images else self.train_part.x[:0]
        if unit.reads_images and (self.c.crop_padding or self.c.flip):
            x = augment(x, draws, padding=self.c.crop_padding, flip=self.c.flip)
        terms = self._loss(unit, x, self.train_part.y[indices], draws)
        held = [p.grad for p in self.method.shared_parameters]
        for p in self.method.shared_parameters:
            p.grad = None
        terms.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.shared_optimizer:
            for p, before in zip(self.method.shared_parameters, held, strict=True):
                if p.grad is not None and self.c.order == "parallel":
                    p.grad *= unit.coupling
                if before is not None:
                    p.grad = before if p.grad is None else p.grad + before
            if self.updates.between_steps(self.position + 1):
                self.shared_optimizer.step()
                self.shared_optimizer.zero_grad(set_to_none=True)
        return terms

    def _loss(self, unit: Unit, x: Tensor, y: Tensor, draws: torch.Generator) -> LossTerms:
        x = self.normalization.apply(x)
        if self.c.channels_last and x.ndim == 4:
            x = channels_last(x)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return unit.loss(x, y, draws)

    def _report_epoch(self, at: Update, losses: Tensor, terms: LossTerms) -> None:
        unit = self.units[at.index]
        event: Event = {
            "event": "epoch",
            "unit": unit.name,
            "epoch": at.epoch + 1,
            "loss": losses.mean().item(),
            "terms": {name: value.item() for name, value in terms.terms.items()},
            "validation_loss": self._validation_loss(unit),
        }
        if self.method.embedding.learned:
            lengths, least = separation(self.method.embedding.weight)
            event["embedding"] = {
                "least_length": lengths.min().item(),
                "greatest_length": lengths.max().item(),
                "least_distance": least,
            }
        if facts := self.method.facts():
            event["facts"] = facts
        self.emit(event)

    @torch.no_grad()
    def _validation_loss(self, unit: Unit) -> float | None:
        """The unit's own loss on the validation part, with the same noise after every epoch."""
        if len(self.validation) < 2:
            return None
        unit.module.eval()
        draws = generator(self.c.seed, "validation", 0, unit.name, self.device)
        total = 0.0
        for x, y in zip(self.validation.x.split(1000), self.validation.y.split(1000), strict=True):
            seen = x if unit.reads_images else x[:0]
            total += self._loss(unit, seen, y, draws).total.item() * len(y)
        unit.module.train()
        return total / len(self.validation)

    # -- units that wait -------------------------------------------------------------------------

    def _optimizer(self, unit: Unit) -> torch.optim.Optimizer | None:
        return None if isinstance(unit, Waiting) else make_optimizer(self.c, unit.parameters)

    def _bring(self, at: Update) -> None:
        """Have the unit of an update in memory, in place of the one that was there before it."""
        if self.optimizers[at.index]:
            return
        assert self.shelf
        self._check_finite()
        if self.visitor is not None:
            self._put_visitor()
            self._set(self.visitor, Waiting(self.units[self.visitor].name))
        unit, tensors = self.shelf.take(self.units[at.index].name)
        unit.module.train()
        self._set(at.index, unit)
        self.visitor = at.index
        if tensors:
            with self._one_architecture():
                self._load(at.index, tensors)

    def _set(self, index: int, unit: Unit) -> None:
        self.units[index], self.optimizers[index] = unit, self._optimizer(unit)

    def _put_visitor(self) -> None:
        """Have the file of the unit that waits at other times say what it is now."""
        if self.shelf and self.visitor is not None:
            name = self.units[self.visitor].name
            self.shelf.put(name, self.position, self._state(self.visitor))

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write weights, optimizer state and the position."""
        self._put_visitor()
        tensors = flatten("shared", self.method.shared.state_dict())
        for index, optimizer in enumerate(self.optimizers):
            if optimizer and index != self.visitor:
                tensors |= self._state(index)
        if self.shared_optimizer:
            tensors |= flatten("shared-optimizer", optimizer_state(self.shared_optimizer))
        about: dict[str, Any] = {
            "position": self.position,
            "total": self.updates.total,
            "fingerprint": self.fingerprint,
            "seconds": self.seconds + time.monotonic() - self.started,
        }
        if self.shelf:
            about["waiting"] = self.shelf.positions
        save_generation(self.checkpoint, tensors, about)
        if self.shelf:
            self.shelf.settle()
        self.saved()

    def resume(self) -> None:
        """Take up the last checkpoint that is whole, if there is one.

        Raises:
            RunError: If it belongs to another architecture or length of training, or to a training
                in which units did not wait as they do in this one.
        """
        found = newest(self.checkpoint, read_checkpoint)
        if found is None:
            if self.shelf:
                self.shelf.begin({}, {})
            return
        tensors, about = found.content
        if not {"position", "total"} <= about.keys():
            raise RunError(f"{self.checkpoint}: is no checkpoint of a training")
        check_fingerprint(self.checkpoint, about, self.fingerprint)
        if about["total"] != self.updates.total:
            raise RunError(
                f"{self.checkpoint}: belongs to a training of {about['total']} updates, "
                f"this one has {self.updates.total}"
            )
        if ("waiting" in about) != bool(self.shelf):
            before, now = ("off", "on") if self.shelf else ("on", "off")
            raise RunError(
                f"{self.checkpoint}: was written with train.offload {before}, now it is {now}; "
                "put it back, or begin a run of its own"
            )
        with self._one_architecture():
            self.method.shared.load_state_dict(unflatten("shared", tensors))
            for index, optimizer in enumerate(self.optimizers):
                if optimizer:
                    self._load(index, tensors)
            if self.shared_optimizer:
                restore_optimizer(self.shared_optimizer, unflatten("shared-optimizer", tensors))
        self.position = about["position"]
        self.seconds = float(about.get("seconds", 0.0))
        if found.path != self.checkpoint:
            promote(self.checkpoint)
        if self.shelf:
            self.shelf.begin(about["waiting"], self._waiting_before())
        if found.trouble:
            self.emit(
                {
                    "event": "damaged",
                    "units": [unit.name for unit in self.units],
                    "reason": found.trouble,
                    "position": self.position,
                    "total": self.updates.total,
                }
            )

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
        except (RuntimeError, ValueError) as error:
            first = " ".join(str(error).split())[:200]
            raise RunError(f"{self.checkpoint}: belongs to another architecture: {first}") from None
