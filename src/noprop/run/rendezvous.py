"""One of the processes that torchrun started: its rank, and the store by which all find each other.

The store carries short messages: what rank 0 decided, and the events of the others, which rank 0
shows. No tensor goes through it.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from noprop.errors import RunError
from noprop.training.events import Emit, Event, event_of
from noprop.training.mesh import keep_to_loopback, peers

__all__ = ["Rendezvous", "joined", "started_by_torchrun"]

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL = 0.5  # seconds between looks at messages of the others


def started_by_torchrun() -> bool:
    """Return whether the environment names the other processes, as that of torchrun does."""
    return all(name in os.environ for name in NAMES)


def joined(patience: timedelta = timedelta(minutes=10)) -> "Rendezvous":
    """Connect this process to the others.

    Args:
        patience: How long to wait for another process.

    Raises:
        RunError: If the environment is not that of torchrun.
        PeerLostError: If rank 0 does not come.
    """
    if missing := [name for name in NAMES if name not in os.environ]:
        raise RunError(f"torchrun: {missing[0]} is not set; start with torchrun … -m noprop train")
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:  # one machine
        keep_to_loopback()
    with peers():
        store, rank, world = next(rendezvous("env://", timeout=patience))
        store.set_timeout(patience)
    return Rendezvous(rank, world, int(os.environ.get("LOCAL_RANK", 0)), store)


@dataclass
class Rendezvous:
    """A process and its way to the others.

    Attributes:
        rank: Rank of the process, 0..world - 1.
        world: Number of processes.
        local_rank: Rank of the process on its machine.
        store: The store, shared by all; rank 0 has it.
    """

    rank: int
    world: int
    local_rank: int
    store: Store
    sent: int = 0  # events of this process
    shown: dict[int, int] = field(default_factory=dict)  # events of each other rank, on rank 0
    looked: float = 0.0

    def decide(self, key: str, value: Callable[[], Any]) -> Any:
        """Return what rank 0 decides: ``value()``, which is called there alone, as JSON.

        Raises:
            PeerLostError: If rank 0 has ended.
        """
        if self.rank:
            return json.loads(self._wait_for(key))
        made = value()
        with peers():
            self.store.set(key, json.dumps(made))
        return made

    def _wait_for(self, key: str) -> bytes:
        """Return a message of rank 0, however long it takes to read data or to evaluate first."""
        with peers():
            while not self.store.check([key]):
                time.sleep(POLL / 2)
            return self.store.get(key)

    def teller(self, emit: Emit) -> Emit:
        """Return what shows an event: on rank 0 by ``emit``, on others by a message to rank 0."""

        def tell(event: Event) -> None:
            if self.rank == 0:
                emit(event)
                self.listen(emit)
                return
            try:
                self.store.set(f"event/{self.rank}/{self.sent}", json.dumps(event.to_json()))
                self.sent += 1
            except RuntimeError:  # rank 0 is gone; training does not need it
                pass

        return tell

    def listen(self, emit: Emit, *, now: bool = False) -> None:
        """Show new events of the others, on rank 0; at most every half second unless ``now``."""
        if self.rank or (time.monotonic() - self.looked < POLL and not now):
            return
        self.looked = time.monotonic()
        for rank in range(1, self.world):
            while True:
                key = f"event/{rank}/{self.shown.get(rank, 0)}"
                if not self.store.check([key]):
                    break
                emit(event_of(json.loads(self.store.get(key))))
                self.store.delete_key(key)
                self.shown[rank] = self.shown.get(rank, 0) + 1

    def leave(self, patience: timedelta = timedelta(seconds=20)) -> None:
        """Leave the others; rank 0, which has the store, after them.

        Rank 0 may evaluate for as long as it takes; the others wait for it.

        Raises:
            PeerLostError: If rank 0 has ended before.
        """
        if self.rank:
            self._wait_for("done")
        with peers():
            self.store.set(f"left/{self.rank}" if self.rank else "done", "")
        if self.rank:
            return
        try:
            self.store.wait([f"left/{rank}" for rank in range(1, self.world)], patience)
        except RuntimeError:  # one has ended otherwise; the run is whole
            pass
