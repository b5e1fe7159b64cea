"""What training asks of an engine: to start processes that work on the groups of a run."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from noprop.config import RunConfig
from noprop.run.worker import Job
from noprop.training.events import Emit

__all__ = ["Engine"]


class Engine(ABC):
    """Starts the processes that train groups, each from its last checkpoint.

    So any engine resumes what another has left.

    Attributes:
        name: Name of the engine, as ``--engine`` takes it.
        at_once: Whether groups of several runs can be given to it at the same time, each run by a
            thread of its own.
        waits: Whether :meth:`run` returns only when the groups are trained.
        reports: Whether this process reports that training starts; of several that run the same
            program, one does.
    """

    name: str
    at_once = False
    waits = True
    reports = True

    @abstractmethod
    def opened(self, config: RunConfig) -> AbstractContextManager[object]:
        """Provide what the engine needs, in this block; it may be entered again in itself.

        Raises:
            ConfigError: If something is not available.
        """

    @abstractmethod
    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """Return how many processes some groups would have; called inside ``opened``."""

    @abstractmethod
    def run(self, job: Job, groups: Sequence[str], emit: Emit) -> None:
        """Train every group that no other process holds.

        Args:
            job: The run.
            groups: Names of the groups.
            emit: Called with every event, after it is written to ``metrics.jsonl``. An exception
                that it raises stops the training, with a checkpoint of each group.

        Raises:
            NoPropError: What stopped a group; the others are stopped, with a checkpoint each.
        """

    def stop(self) -> None:
        """Have :meth:`run` end in other threads, with a checkpoint of each group."""
        raise NotImplementedError
