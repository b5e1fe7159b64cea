"""Engines: where the groups of a run are trained. Training asks for no more than this of them.

The local one has processes of this machine; others are in :mod:`noprop.run.ray_engine`.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

from noprop.config import RunConfig
from noprop.errors import NoPropError
from noprop.run.groups import Work
from noprop.run.workers import expect_workers, local_layout, train_groups

__all__ = ["Ended", "Engine", "LocalEngine"]

Ended = Generator[tuple[Work, NoPropError | None], None, None]


class Engine(ABC):
    """Trains groups, each from its last checkpoint, so that any engine may go on with a run."""

    name: str

    def expect(self, config: RunConfig) -> None:  # noqa: B027
        """Begin what takes a while, such as starting processes, before the data are loaded."""

    @abstractmethod
    def opened(self, config: RunConfig) -> AbstractContextManager[object]:
        """Whatever it needs is there in this context; it may be entered again within itself.

        Raises:
            ConfigError: If that is not to be had.
        """

    @abstractmethod
    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """How many processes some groups would have; asked inside ``opened``."""

    @abstractmethod
    def train_many(self, works: Iterable[Work]) -> Ended:
        """Train groups of several runs, and give each run back when its groups are done.

        With it comes what stopped it, if something did; the other runs go on. A group's last event
        is that of :func:`noprop.run.groups.train_group`. Whatever ``emit`` raises stops all.
        """

    def train(self, work: Work) -> None:
        """Train groups of one run.

        Raises:
            NoPropError: What stopped one; the others are stopped with a checkpoint each.
        """
        with closing(self.train_many([work])) as ended:
            for _, error in ended:
                if error is not None:
                    raise error


class LocalEngine(Engine):
    """Processes of this machine, ``train.workers`` of them; one run after the other."""

    name = "local"

    def expect(self, config: RunConfig) -> None:
        """Start the process that workers are forked from, where there will be several."""
        expect_workers(config)

    def opened(self, config: RunConfig) -> AbstractContextManager[object]:
        """Nothing is needed."""
        return nullcontext()

    def workers(self, config: RunConfig, groups: Sequence[str]) -> int:
        """See :func:`noprop.run.workers.local_layout`."""
        return local_layout(config, groups).size if groups else 1

    def train_many(self, works: Iterable[Work]) -> Ended:
        """Train each run with all processes before the next is asked for."""
        for work in works:
            error = None
            if work.groups:
                layout = local_layout(work.job.config, work.groups)
                try:
                    train_groups(work.job, work.material, work.groups, layout, work.emit)
                except NoPropError as stopped:
                    error = stopped
            yield work, error
