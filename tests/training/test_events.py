"""Events as text: the keys of ``metrics.jsonl``, and the way back."""

import json
import pickle

import pytest

from noprop.training.events import KINDS, Damaged, Epoch, Event, Found, Started, Trained, event_of

EPOCH = {"unit": "block-1", "epoch": 2, "loss": 0.5, "terms": {"a": 0.5}, "validation_loss": None}
EVENTS: list[tuple[Event, dict]] = [
    (Found("all"), {"event": "found", "group": "all"}),
    (Started(["a", "b"], 2), {"event": "started", "groups": ["a", "b"], "workers": 2}),
    (
        Started(["a"], 0, engine="ray", shards=2, quick=["b"]),
        {"event": "started", "groups": ["a"], "workers": 0, "engine": "ray", "shards": 2,
         "quick": ["b"]},
    ),
    (
        Damaged(["a"], "why", 3, 4),
        {"event": "damaged", "units": ["a"], "reason": "why", "position": 3, "total": 4},
    ),
    (Epoch(**EPOCH), {"event": "epoch", **EPOCH}),
    (Epoch(**EPOCH, facts={"x": [1.0]}), {"event": "epoch", **EPOCH, "facts": {"x": [1.0]}}),
    (
        Trained(["a"], 1.5, peak_memory_mb=10.0, memory_counter="rss", run="digits-seed-0"),
        {"event": "trained", "run": "digits-seed-0", "units": ["a"], "seconds": 1.5,
         "peak_memory_mb": 10.0, "memory_counter": "rss"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("event", "value"), EVENTS)
def test_an_event_is_the_same_as_text_and_through_a_pipe(event, value):
    """What has its default is left out, and comes back."""
    assert event.to_json() == value
    assert event_of(json.loads(json.dumps(event.to_json()))) == event
    assert pickle.loads(pickle.dumps(event)) == event


def test_every_kind_of_event_has_its_name():
    assert {name for name, kind in KINDS.items() if kind.__module__.endswith("events")} >= {
        *("created", "started", "found", "restarted", "damaged", "progress"),
        *("epoch", "trained", "evaluating", "evaluated", "grid", "finished", "failed"),
    }


@pytest.mark.parametrize(
    ("value", "error"),
    [({"event": "none"}, KeyError), ({"event": "found"}, TypeError), ({}, KeyError)],
)
def test_what_is_no_event_is_an_error(value, error):
    with pytest.raises(error):
        event_of(value)
