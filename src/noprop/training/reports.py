"""Events of the training of a group: progress, the end of an epoch, the end of training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from noprop.data import Examples
from noprop.embeddings import separation
from noprop.errors import TrainingError
from noprop.machine import peak_memory
from noprop.methods.base import LossTerms, Method, Unit
from noprop.randomness import generator
from noprop.run_settings import TrainConfig
from noprop.training.events import Emit, Epoch, Event, Progress, Trained
from noprop.training.gradients import Gradients
from noprop.training.optimizers import learning_rate
from noprop.training.plan import Plan, Update
from noprop.training.state import GroupState

__all__ = ["Reports"]


class Reports:
    """Events of a group, emitted by one of the processes that train it.

    Args:
        train: Configuration of training.
        method: Method whose facts and embeddings are reported.
        state: State of the group.
        plan: Plan of the group's updates.
        gradients: Computes the losses on the validation part.
        validation: Validation part, on the device; used only to report the units' losses.
        emit: Function that is called with every event.
    """

    def __init__(
        self,
        train: TrainConfig,
        method: Method,
        state: GroupState,
        plan: Plan,
        gradients: Gradients,
        validation: Examples,
        emit: Emit,
    ):
        self.c, self.method, self.state, self.plan = train, method, state, plan
        self.gradients, self.validation = gradients, validation
        self.emit = emit

    def progress(
        self, update: Update, position: int, running: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Emit the progress of the group.

        Args:
            update: Last update.
            position: Number of updates done.
            running: Losses of each unit since its last epoch ended.

        Raises:
            TrainingError: If a loss is not finite.
        """
        for name, losses in running.items():
            if losses and not bool(torch.stack(list(losses)).isfinite().all()):
                raise self.diverged(f"{name}: the loss is", position)
        unit = self.state.units[update.unit]
        self.tell(
            Progress(
                unit.name,
                epoch=update.epoch + 1,
                position=position,
                total=self.plan.total,
                work=self.plan.work(position),
                total_work=self.plan.work(self.plan.total),
                loss=torch.stack(list(running[unit.name])).mean().item(),
            )
        )

    def epochs(self, ended: Sequence[tuple[Update, Tensor, LossTerms]]) -> list[Epoch]:
        """Return units' losses in an epoch and on the validation part, and the method's facts.

        Args:
            ended: The last update of each unit, its losses in the epoch, and the terms of the last.
        """
        validation = self._validation_losses([self.state.units[u.unit] for u, _, _ in ended])
        return [
            self._epoch(update, losses, terms, loss)
            for (update, losses, terms), loss in zip(ended, validation, strict=True)
        ]

    def group_loss(self, known: Sequence[Epoch]) -> float:
        """Return the validation loss of the group, see :mod:`noprop.training.patience`.

        Args:
            known: Epochs of some units, with their losses as they are now.
        """
        units, losses = self.state.units, {e.unit: e.validation_loss for e in known}
        mine = [unit for unit, here in zip(units, self.state.is_mine, strict=True) if here]
        judged = units[-1:] if self.gradients.stack else mine
        if len(units) > 1 or units[0].name not in losses:  # others have changed since
            found = self._validation_losses(judged)
            losses = {unit.name: loss for unit, loss in zip(judged, found, strict=True)}
        weight = dict.fromkeys((u.name for u in judged), 1.0) if self.gradients.stack else {}
        rows = torch.zeros(len(units), dtype=torch.float64)
        for index, unit in enumerate(units):
            if unit.name in losses and (loss := losses[unit.name]) is not None:
                rows[index] = loss * weight.get(unit.name, unit.coupling)
        whole = self.state.mesh.merge(rows.view(torch.uint8).reshape(len(units), -1))
        return sum(whole.contiguous().view(torch.float64)[:, 0].tolist())

    def _epoch(
        self, update: Update, losses: Tensor, terms: LossTerms, validation: float | None
    ) -> Epoch:
        unit = self.state.units[update.unit]
        embedding = None
        if self.method.embedding.learned:
            lengths, least = separation(self.method.embedding.weight)
            embedding = {
                "least_length": lengths.min().item(),
                "greatest_length": lengths.max().item(),
                "least_distance": least,
            }
        return Epoch(
            unit.name,
            epoch=update.epoch + 1,
            loss=losses.mean().item(),
            terms={name: value.item() for name, value in terms.terms.items()},
            validation_loss=validation,
            lr=learning_rate(self.c, self.plan.progress(update)),
            embedding=embedding,
            facts=self.method.facts() or None,
        )

    def end(self, seconds: float) -> None:
        """Emit that the group is trained, with the time in seconds and the peak memory."""
        patience = self.state.patience
        units = self.state.units
        names = [unit.name for index, unit in enumerate(units) if self.state.is_mine[index]]
        memory, counter = peak_memory(self.validation.x.device)
        self.tell(
            Trained(
                names,
                seconds,
                peak_memory_mb=memory,
                memory_counter=counter,
                last_epoch=patience.epoch,
                best_epoch=patience.best,
            )
        )

    def diverged(self, what: str, position: int) -> TrainingError:
        """Return the error for a value that is not finite before update ``position``."""
        epoch = self.plan.at(position - 1).epoch + 1
        kept = any(self.state.folder.glob("*.json"))
        return TrainingError(
            f"{what} not finite by update {position} of {self.plan.total} "
            f"(epoch {epoch}, lr {self.c.lr:g})"
            + "; its last good checkpoint is kept" * kept
            + ". Try a smaller train.lr"
        )

    def tell(self, event: Event) -> None:
        """Emit an event, if this process is the one that reports."""
        if self.state.mesh.reports:
            self.emit(event)

    @torch.no_grad()
    def _validation_losses(self, units: Sequence[Unit]) -> list[float | None]:
        """Return units' losses on the validation part, with the same noise after every epoch."""
        if len(self.validation) < 2:
            return [None] * len(units)
        stack, seed = self.gradients.stack, self.c.seed
        evaluated = stack.units if stack else units
        for unit in evaluated:
            unit.module.eval()
        device = self.validation.x.device
        draws = {u.name: generator(seed, "validation", 0, u.name, device) for u in units}
        of_stack = generator(seed, "validation", 0, f"stack/{units[0].phase}", device)
        totals = [0.0] * len(units)
        for x, y in zip(self.validation.x.split(1000), self.validation.y.split(1000), strict=True):
            read = self.gradients.signals(x, y, of_stack, units[0].phase) if stack else x
            loss = self.gradients.loss_in_stack if stack else self.gradients.loss
            for i, unit in enumerate(units):
                totals[i] += loss(unit, read, y, draws[unit.name]).total.item() * len(y)
        for unit in evaluated:
            unit.module.train()
        return [total / len(self.validation) for total in totals]
