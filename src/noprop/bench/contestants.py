"""Contestants of a race: work that is built once in separate processes and runs on request.

A separate process has its own memory and threads, as in use. While one contestant runs, the others
wait on a pipe and cost nothing. Rounds alternate, so that a busy machine slows all of them alike.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from noprop.run.processes import Child, stop

__all__ = ["Contestant", "Timing", "race", "ratios", "spread"]

GRACE = 2.0  # seconds in which a process may end
Build = Callable[..., Callable[[int], Any]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


@dataclass(frozen=True)
class Timing:
    """Times of one contestant.

    Attributes:
        seconds: Seconds of one unit of work, in every round.
        answers: What the work returned in every round, in each of its processes.
    """

    seconds: list[float]
    answers: list[list[Any]]

    def rate(self, items: float | int) -> dict[str, float]:
        """Return items per second, for units of ``items`` each: median, least and greatest."""
        return spread([items / s for s in self.seconds])


def ratios(faster: Timing, slower: Timing, scale: float | int = 1) -> dict[str, float]:
    """Return how many times as fast one is, round by round: median, least and greatest.

    Args:
        faster: Timing whose seconds divide.
        slower: Timing whose seconds are divided.
        scale: Number of units of work of ``faster`` that equal one unit of ``slower``.
    """
    return spread([scale * b / a for a, b in zip(faster.seconds, slower.seconds, strict=True)])


class Contestant:
    """One contestant, in one process or several that run at the same time.

    Args:
        build: Function of a module. Each process calls it with its settings, and then calls the
            function that it returned with the number of units of work to do.
        settings: Keyword arguments of ``build`` in each process.
    """

    def __init__(self, build: Build, *settings: dict[str, Any]):
        self.children = [Child(_serve, build, chosen, name="a benchmark") for chosen in settings]

    def run(self, units: int) -> tuple[float, list[Any]]:
        """Do units of work in every process; return the seconds until the last ends, and answers.

        Raises:
            RunError: If a process failed.
        """
        began = time.perf_counter()
        for child in self.children:
            child.send(units)
        answers = [child.receive() for child in self.children]
        return time.perf_counter() - began, answers

    def close(self) -> None:
        """End the processes; those that still work after a while are killed."""
        stop(self.children, GRACE)


def _serve(connection: Connection, build: Build, settings: dict[str, Any]) -> None:
    work = build(**settings)
    # A process that is killed leaves the semaphores of the packages that it imported.
    while (units := connection.recv()) is not None:
        connection.send(work(units))


def race(
    contestants: dict[str, Contestant],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Timing]:
    """Time all contestants in alternating rounds, and end their processes.

    Args:
        contestants: Contestants by name.
        rounds: Number of rounds; each contestant is timed once in a round, after a warm-up.
        seconds: Approximate duration of a run in a round; a run is at least one unit of work.
        progress: Function that is called with a description of each finished step.
    """
    with ExitStack() as stack:
        for contestant in contestants.values():
            stack.callback(contestant.close)
        units: dict[str, int] = {}
        for name, contestant in contestants.items():
            contestant.run(1)  # builds, allocates, chooses kernels
            taken, _ = contestant.run(1)
            units[name] = max(1, round(seconds / taken))
            progress(f"{name} is warm")
        timings = {name: Timing([], []) for name in contestants}
        for number in range(1, rounds + 1):
            for name, contestant in contestants.items():
                taken, answers = contestant.run(units[name])
                timings[name].seconds.append(taken / units[name])
                timings[name].answers.append(answers)
                progress(f"{name}, round {number} of {rounds}")
    return timings
