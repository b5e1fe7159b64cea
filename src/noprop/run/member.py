"""One of the processes that torchrun started: its rank, and the store by which all find each other.

The store carries a few short messages: what rank 0 decided, and the events of the others, which
rank 0 shows. No tensor goes through it.
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

__all__ = ["Member", "joined", "started_by_torchrun"]

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL = 0.5  # seconds between looks at what the others tell


def started_by_torchrun() -> bool:
    """Whether the environment says where the other processes are, as torchrun has it say."""
    return all(name in os.environ for name in NAMES)


def joined(patience: timedelta = timedelta(minutes=10)) -> "Member":
    """This process, once rank 0 has made the store.

    Args:
        patience: how long another process is waited for.

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
    return Member(rank, world, int(os.environ.get("LOCAL_RANK", 0)), store)


@dataclass
class Member:
    """A process and its way to the others.

    Attributes:
        rank: of the process, 0..world - 1.
        world: how many there are.
        local_rank: on its machine.
        store: shared by all; rank 0 has it.
    """

    rank: int
    world: int
    local_rank: int
    store: Store
    told: int = 0  # events of this process
    heard: dict[int, int] = field(default_factory=dict)  # by rank, on rank 0
    looked: float = 0.0

    def decide(self, key: str, value: Callable[[], Any]) -> Any:
        """What rank 0 decides, known to all: ``value()`` is asked there alone, and is JSON.

        Raises:
            PeerLostError: If rank 0 has ended.
        """
        if self.rank:
            return json.loads(self._told(key))
        made = value()
        with peers():
            self.store.set(key, json.dumps(made))
        return made

    def _told(self, key: str) -> bytes:
        """What rank 0 says, however long it takes: it may read data, or evaluate, for an hour."""
        with peers():
            while not self.store.check([key]):
                time.sleep(POLL / 2)
            return self.store.get(key)

    def teller(self, emit: Emit) -> Emit:
        """What shows an event: on rank 0 by ``emit``, on others by telling rank 0."""

        def tell(event: Event) -> None:
            if self.rank == 0:
                emit(event)
                self.listen(emit)
                return
            try:
                self.store.set(f"event/{self.rank}/{self.told}", json.dumps(event.to_json()))
                self.told += 1
            except RuntimeError:  # rank 0 is gone; training is not in need of it
                pass

        return tell

    def listen(self, emit: Emit, *, now: bool = False) -> None:
        """Show what the others have told since; on rank 0, and once in a while unless ``now``."""
        if self.rank or (time.monotonic() - self.looked < POLL and not now):
            return
        self.looked = time.monotonic()
        for rank in range(1, self.world):
            while True:
                key = f"event/{rank}/{self.heard.get(rank, 0)}"
                if not self.store.check([key]):
                    break
                emit(event_of(json.loads(self.store.get(key))))
                self.store.delete_key(key)
                self.heard[rank] = self.heard.get(rank, 0) + 1

    def part(self, patience: timedelta = timedelta(seconds=20)) -> None:
        """Leave: rank 0, who has the store, after the others.

        Rank 0 may look through the test part for as long as it takes, and is waited for.

        Raises:
            PeerLostError: If rank 0 has ended before.
        """
        if self.rank:
            self._told("done")
        with peers():
            self.store.set(f"left/{self.rank}" if self.rank else "done", "")
        if self.rank:
            return
        try:
            self.store.wait([f"left/{rank}" for rank in range(1, self.world)], patience)
        except RuntimeError:  # one has ended otherwise; the run is whole
            pass
