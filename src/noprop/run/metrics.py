"""The events of a run, one JSON object a line, and what they tell of its cost.

Several processes append to ``metrics.jsonl`` at the same time: each line is one write to the end.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from noprop.errors import RunError
from noprop.files import open_in_place
from noprop.training.events import Emit, Event, Progress, event_of

__all__ = ["append_line", "follow", "read_metrics", "recorder", "training_cost"]

OF_TRAINING = ("started", "epoch", "trained")  # events between which training takes time
LONGEST = 1 << 20  # bytes read of a line at once; an event has some thousands


def recorder(folder: Path, emit: Emit) -> Emit:
    """Return a function that writes events except progress to ``metrics.jsonl``, and emits all."""
    path = folder / "metrics.jsonl"

    def record(event: Event) -> None:
        if not isinstance(event, Progress):
            line = json.dumps({"time": round(time.time(), 3), **event.to_json()}) + "\n"
            try:  # errors of emit are not those of this file
                append_line(path, line.encode())
            except OSError as error:
                reason = error.strerror or error
                raise RunError(f"{path}: cannot be written: {reason}") from None
        emit(event)

    return record


def append_line(path: Path, line: bytes) -> None:
    """Append to a file by one write, which the system puts at the end of its current content.

    A line that a full disk has cut short is ended first, or it would take this one with it.
    """
    file = open_in_place(path, os.O_RDWR | os.O_APPEND)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        if end:
            os.lseek(file, end - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":
                line = b"\n" + line
        written = os.write(file, line)
        if written < len(line):
            os.write(file, line[written:])  # says why not
    finally:
        os.close(file)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return all events of a run; a line that was cut short, or is no event, is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with path.open("rb") as file:
        return _events_in(iter(lambda: file.readline(LONGEST), b""))


def _events_in(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    events = []
    for line in lines:
        try:
            event = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def follow(folder: Path) -> Callable[[], list[Event]]:
    """Return a function that returns the events since it was called last, or since now."""
    path = folder / "metrics.jsonl"
    offset = path.stat().st_size if path.exists() else 0

    def new_events() -> list[Event]:
        nonlocal offset
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        offset += len(whole)
        events = []
        for value in _events_in(whole.splitlines()):
            with suppress(KeyError, TypeError):  # of another version of the package
                events.append(event_of({k: v for k, v in value.items() if k != "time"}))
        return events

    return new_events


def training_cost(folder: Path) -> dict[str, Any]:
    """Return the cost of training: ``seconds``, ``wall_seconds``, ``workers`` and peak memory.

    ``seconds`` are summed over the groups, each with those of all the processes that had it;
    ``wall_seconds`` passed while any was trained. ``workers`` are the most that were started at
    once, and the peak memory is that of the largest process. Empty without such events.
    """
    every = read_metrics(folder)
    # The last event of a group counts: its seconds include those of a shorter training before.
    ends = {str(e.get("units")): e for e in every if e["event"] == "trained"}
    events = list(ends.values())
    numbers = [e.get(name) for e in events for name in ("seconds", "peak_memory_mb")]
    told = all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    if not events or not told or not all(isinstance(e.get("memory_counter"), str) for e in events):
        return {}
    largest = max(events, key=lambda e: e["peak_memory_mb"])
    return {
        "seconds": sum(e["seconds"] for e in events),
        **_wall_time(every),
        "peak_memory_mb": largest["peak_memory_mb"],
        "memory_counter": largest["memory_counter"],
    }


def _wall_time(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the time while any group was trained: units may wait for a worker, and it to start.

    Of a start that another one follows it is the time to its last event of training: what is found
    later, as a run is resumed, took no time. Empty for a run whose events do not tell it.
    """
    starts = list[list[dict[str, Any]]]()
    for event in events:
        now = event.get("time")
        if not isinstance(now, int | float) or not math.isfinite(now):
            return {}
        if event["event"] == "started":
            starts.append([])
        if starts and event["event"] in OF_TRAINING:
            starts[-1].append(event)
    if not starts:
        return {}
    total = sum(part[-1]["time"] - part[0]["time"] for part in starts[:-1])
    counts = [part[0].get("workers") for part in starts]
    workers = max(count if isinstance(count, int) else 0 for count in counts)
    return {"wall_seconds": round(total + _busy_time(starts[-1]), 3), "workers": workers}


def _busy_time(events: Sequence[dict[str, Any]]) -> float:
    """Return the time in which at least one group was trained, by when each was finished."""
    first, total, end = events[0]["time"], 0.0, events[0]["time"]
    trained = [event for event in events if event["event"] == "trained"]
    if not trained:
        return events[-1]["time"] - first
    # An earlier process may have begun a group, whose seconds are then those of both.
    spans = sorted((max(first, e["time"] - e["seconds"]), e["time"]) for e in trained)
    for begin, done in spans:
        total += max(0.0, done - max(begin, end))
        end = max(end, done)
    return total
