"""Tasks of Ray that are under way: what was given to its queue, what they send, what came of them.

Ray has the queue, the places and the retries. Kept here is what a driver must remember: whose a
task is, which events it has passed on already, and which it was told to drop.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from noprop.errors import NoPropError, TrainingError
from noprop.run.groups import Work
from noprop.run.ray_cluster import reason_of, the_ray
from noprop.run.ray_tasks import Attempt, Outcome, Parcel, arrays_of, train_task
from noprop.run.sending import sent_by_value
from noprop.run.storage import RunStorage
from noprop.training.events import Restarted
from noprop.training.signals import named

__all__ = ["Tasks"]

Ended = tuple[int, str, NoPropError | None]
LOOK = 0.2  # seconds between looks at the mail
# Ray's errors after the last retry, and what was lost.
LOSSES = {
    "WorkerCrashedError": "killed, or out of memory",
    "OutOfMemoryError": "out of memory",
    "NodeDiedError": "with its machine",
}
GRACE = 30.0  # seconds that tasks have to save a checkpoint when they are stopped


@dataclass
class Ticket:
    """A task: the group it trains, of the work of a number, and what is known of it.

    Attributes:
        attempts: names of its starts, in order.
        seen: the events that were passed on, by attempt and number.
        over: whether nothing more of it counts.
    """

    number: int
    work: Work
    group: str
    attempts: list[str] = field(default_factory=list)
    seen: set[tuple[str, int]] = field(default_factory=set)
    over: bool = False


class Tasks:
    """Gives groups to Ray, passes their events on, and says which have ended.

    Args:
        retries: how often a task whose worker was lost is started again.
    """

    def __init__(self, retries: int):
        from ray.util.queue import Queue

        self.ray, self.retries = the_ray(), retries
        here = self.ray.get_runtime_context().get_node_id()
        # Beside the driver, so that the events do not go with a machine that is taken away.
        place = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        self.mail: Any = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": place})
        self.tickets: list[Ticket] = []
        self.pending: dict[Any, Ticket] = {}
        self.stored: dict[bytes, Any] = {}
        self.lost: list[Ended] = []

    def submit(
        self, number: int, work: Work, resources: dict[str, Any], storage: RunStorage | None
    ) -> None:
        """Give the groups of a work to Ray's queue; equal arrays are stored once for all works.

        Args:
            number: of the work.
            work: the groups.
            resources: that each group takes, as options of a task.
            storage: of the run, where its folder is not shared.
        """
        if not work.groups:
            return
        arrays = [self._stored(array) for array in arrays_of(work.material)]
        options = {"max_retries": self.retries, "retry_exceptions": False, **resources}
        remote = self.ray.remote(**options)(train_task)
        job = replace(work.job, folder=work.job.folder.resolve())
        with sent_by_value(job.factory):
            for group in work.groups:
                ticket = Ticket(number, work, group)
                task = remote.options(name=f"{job.folder.name}/{group}")
                place = storage.unit(group) if storage else None
                about = (len(self.tickets), resources["num_gpus"], place)
                ref = task.remote(job, group, *about, self.mail, *arrays)
                self.tickets.append(ticket)
                self.pending[ref] = ticket

    def _stored(self, array: NDArray[Any]) -> Any:
        about = f"{array.dtype} {array.shape}".encode()
        key = hashlib.blake2b(array.data, key=hashlib.blake2b(about, digest_size=16).digest())
        if (digest := key.digest()) not in self.stored:
            self.stored[digest] = self.ray.put(array)
        return self.stored[digest]

    def ended(self) -> Iterator[Ended]:
        """The tasks in the order in which they end, with what stopped each, if something did.

        Those that were cancelled are left out. Meanwhile events are passed on.
        """
        while self.pending:
            with named():
                done, _ = self.ray.wait(list(self.pending), timeout=LOOK)
                self._deliver()
            while self.lost:
                yield self.lost.pop(0)
            for ref in done:
                ticket = self.pending.pop(ref)
                if ticket.over:
                    continue
                error = self._result(ref, ticket)
                ticket.over = True
                yield ticket.number, ticket.group, error

    def _result(self, ref: Any, ticket: Ticket) -> NoPropError | None:
        try:
            outcome: Outcome = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:  # outside of what a task can catch
            return TrainingError(f"{ticket.group}: a worker failed: {reason_of(error)}")
        except self.ray.exceptions.RayError as error:
            kind = type(error).__name__
            return self._gone(ticket, kind if kind in LOSSES else reason_of(error))
        for parcel in outcome.parcels:
            self._take(parcel)
        return outcome.error

    def _gone(self, ticket: Ticket, error: str) -> TrainingError:
        """The error of a task that Ray gave up."""
        times = f"{self.retries + 1} times" if self.retries else "once"
        how = f"its worker was lost {times} ({LOSSES[error]})" if error in LOSSES else error
        return TrainingError(
            f"{ticket.group}: {how}; its last checkpoint is kept, go on with: noprop train "
            f"--resume {ticket.work.job.folder}"
        )

    def _deliver(self) -> None:
        """Pass on what has come; mail that is late or lost is not waited for."""
        with suppress(self.ray.exceptions.RayError):
            count = self.ray.get(self.mail.actor.qsize.remote(), timeout=5)
            if not count:
                return
            parcels = self.ray.get(self.mail.actor.get_nowait_batch.remote(count), timeout=5)
            for parcel in parcels:
                self._take(parcel)

    def _take(self, parcel: Parcel) -> None:
        ticket, event = self.tickets[parcel.task], parcel.event
        if ticket.over or (parcel.attempt, parcel.number) in ticket.seen:
            return
        ticket.seen.add((parcel.attempt, parcel.number))
        if isinstance(event, Attempt):
            self._begun(ticket, parcel.attempt, event.node)
        else:
            ticket.work.emit(event)

    def _begun(self, ticket: Ticket, attempt: str, node: str) -> None:
        """A task was started, for the first time or again."""
        ticket.attempts.append(attempt)
        if len(ticket.attempts) == 1:
            return
        if len(ticket.attempts) > self.retries + 1:  # Ray's own count leaves out lack of memory
            ticket.attempts.pop()
            self.lost.append((ticket.number, ticket.group, self._gone(ticket, "OutOfMemoryError")))
            for ref in [ref for ref, other in self.pending.items() if other is ticket]:
                self._cancel(ref, ticket)
            return
        ticket.work.emit(Restarted(ticket.group, len(ticket.attempts), node))

    def cancel(self, number: int) -> None:
        """Stop the tasks of a work, with a checkpoint each."""
        for ref, ticket in self.pending.items():
            if ticket.number == number:
                self._cancel(ref, ticket)

    def _cancel(self, ref: Any, ticket: Ticket, *, force: bool = False) -> None:
        ticket.over = True
        with suppress(Exception):  # Ray is gone itself
            self.ray.cancel(ref, force=force)

    def stop(self) -> None:
        """Stop every task that is left, and wait while they save their checkpoints."""
        left, deadline = dict(self.pending), time.monotonic() + GRACE
        for ref, ticket in left.items():
            self._cancel(ref, ticket)
        try:
            with suppress(self.ray.exceptions.RayError):
                while left and time.monotonic() < deadline:
                    done, _ = self.ray.wait(list(left), timeout=LOOK)
                    left = {ref: ticket for ref, ticket in left.items() if ref not in done}
        finally:
            # None that has just ended: Ray 2.60 would end this process for being asked so.
            for ref, ticket in left.items():
                self._cancel(ref, ticket, force=True)
            with suppress(Exception):
                self.mail.shutdown(force=True)
