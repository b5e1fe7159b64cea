"""Races: work in processes of its own, alternating rounds, errors that come through."""

import os
import signal
import time

import pytest

from noprop.bench.contestants import Contestant, Timing, race, ratios
from noprop.errors import RunError


def sleeper(seconds):
    def work(units):
        time.sleep(seconds * units)
        return os.getpid()

    return work


def failing():
    def work(units):
        raise ValueError("no such thing")

    return work


def dying():
    os._exit(3)


def test_a_race_finds_who_is_faster():
    """0.01 s against 0.04 s a unit: at least 3 times, even where the system is slow to wake."""
    timings = race(
        {"a": Contestant(sleeper, {"seconds": 0.04}), "b": Contestant(sleeper, {"seconds": 0.01})},
        rounds=3,
        seconds=0.2,
    )
    found = ratios(timings["b"], timings["a"])
    assert found["median"] > 3
    assert found["least"] <= found["median"] <= found["greatest"]
    assert len(timings["a"].seconds) == 3
    assert len(timings["a"].answers) == 3
    # processes of their own
    assert timings["a"].answers[0] != timings["b"].answers[0]
    assert os.getpid() not in timings["a"].answers[0]


def test_processes_of_one_contestant_run_at_the_same_time():
    contestant = Contestant(sleeper, *({"seconds": 0.5} for _ in range(3)))
    try:
        contestant.run(0)
        taken, answers = contestant.run(1)
    finally:
        contestant.close()
    assert taken < 1.2
    assert len(set(answers)) == 3
    # They end by themselves: one that is killed leaves semaphores, of which Python warns.
    assert [child.process.exitcode for child in contestant.children] == [0, 0, 0]


def test_a_process_that_still_works_is_killed():
    contestant = Contestant(sleeper, {"seconds": 60})
    contestant.run(0)
    contestant.children[0].send(1)
    contestant.close()
    assert contestant.children[0].process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("build", "words"), [(failing, "ValueError: no such thing"), (dying, "ended unexpectedly")]
)
def test_what_goes_wrong_in_a_process_is_said(build, words):
    contestants = {"bad": Contestant(build, {})}
    with pytest.raises(RunError, match=words):
        race(contestants, rounds=1, seconds=0.01)
    assert all(not child.process.is_alive() for child in contestants["bad"].children)


def test_rates_and_ratios():
    """Ratios are of the same round: both slow down in the second."""
    a, b = Timing([1.0, 2.0, 1.0], []), Timing([2.0, 6.0, 3.0], [])
    assert ratios(a, b) == {"median": 3.0, "least": 2.0, "greatest": 3.0}
    assert ratios(a, b, scale=2.0)["least"] == 4.0
    assert a.rate(10.0) == {"median": 10.0, "least": 5.0, "greatest": 10.0}
