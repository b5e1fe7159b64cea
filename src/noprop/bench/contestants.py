"""Contestants of a race: work that is built once in processes of its own and run when told to.

A process of its own has its own memory and threads, as in use; while one contestant runs the others
wait on a pipe and cost nothing. Rounds alternate, so that a busy machine slows all alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from noprop.run.processes import Child

__all__ = ["Contestant", "Timing", "race", "ratios"]

Build = Callable[[dict[str, Any]], Callable[[int], Any]]


@dataclass(frozen=True)
class Timing:
    """Seconds of each round.

    Attributes:
        seconds: of one unit of work, in every round.
        answer: what the work returned last, in each of its processes.
    """

    seconds: list[float]
    answer: list[Any]

    def rate(self, items: float | int) -> dict[str, float]:
        """Items a second where a unit of work is so many: median, least and greatest."""
        rates = [items / s for s in self.seconds]
        return {"median": statistics.median(rates), "least": min(rates), "greatest": max(rates)}


class Contestant:
    """One contestant, in one process or several that run at the same time.

    Args:
        build: a function of a module, called in each process with the settings; what it returns is
            called with how many units of work to do.
        settings: of each process.
    """

    def __init__(self, build: Build, *settings: dict[str, Any]):
        self.children = [Child(_serve, build, chosen, name="a benchmark") for chosen in settings]

    def run(self, units: int) -> tuple[float, list[Any]]:
        """Do so many units of work in every process; seconds until the last is done, and answers.

        Raises:
            RunError: If a process failed.
        """
        began = time.perf_counter()
        for child in self.children:
            child.send(units)
        answers = [child.receive() for child in self.children]
        return time.perf_counter() - began, answers

    def close(self) -> None:
        """End the processes."""
        for child in self.children:
            child.kill()  # it has nothing to save


def _serve(connection: Connection, build: Build, settings: dict[str, Any]) -> None:
    work = build(settings)
    while True:
        connection.send(work(connection.recv()))


@contextmanager
def _all(contestants: Sequence[Contestant]) -> Iterator[None]:
    try:
        yield
    finally:
        for contestant in contestants:
            contestant.close()


def race(
    contestants: dict[str, Contestant],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Timing]:
    """Time all contestants in alternating rounds, and end their processes.

    Args:
        contestants: by name.
        rounds: of which each is timed once; the warm-up before them is not counted.
        seconds: about how long a contestant runs in a round; at least one unit of work.
        progress: called with what was just done.
    """
    with _all(list(contestants.values())):
        units: dict[str, int] = {}
        for name, contestant in contestants.items():
            contestant.run(1)  # builds, allocates, chooses kernels
            taken, _ = contestant.run(1)
            units[name] = max(1, round(seconds / taken))
            progress(f"{name} is warm")
        times: dict[str, list[float]] = {name: [] for name in contestants}
        answers: dict[str, list[Any]] = {}
        for number in range(1, rounds + 1):
            for name, contestant in contestants.items():
                taken, answers[name] = contestant.run(units[name])
                times[name].append(taken / units[name])
                progress(f"{name}, round {number} of {rounds}")
    return {name: Timing(times[name], answers[name]) for name in contestants}


def ratios(faster: Timing, slower: Timing, scale: float | int = 1) -> dict[str, float]:
    """How many times as fast, round by round: median, least and greatest.

    Args:
        faster: whose seconds divide.
        slower: whose seconds are divided.
        scale: units of work of ``faster`` that equal one of ``slower``.
    """
    values = [scale * b / a for a, b in zip(faster.seconds, slower.seconds, strict=True)]
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
