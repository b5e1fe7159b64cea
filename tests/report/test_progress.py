"""How much is done and how long it takes still, by a clock that the test holds."""

import pytest

from noprop.report import progress
from noprop.report.progress import ProgressReport
from noprop.training.events import Progress, Started


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def started(*groups: str) -> ProgressReport:
    report = ProgressReport(100, quiet=True)
    report(Started(groups, 1))
    return report


def tell(report: ProgressReport, unit: str, work: int, of: int) -> None:
    report(
        Progress(
            unit,
            epoch=1,
            position=2 * work,  # as many updates of the readout
            total=2 * of,
            work=work,
            total_work=of,
            loss=1.0,
        )
    )


def test_time_left_after_a_resume_counts_from_there(clock):
    """From 80 % on: 10 % took 10 s, so the last 10 % take 10 s, not 10 s / 9."""
    report = started("block-1")
    tell(report, "block-1", 80, 100)
    clock.now = 10
    tell(report, "block-1", 90, 100)
    assert report.share == pytest.approx(0.9)
    assert report.summary() == "100 examples/s, 10 s left"


def test_groups_that_have_not_begun_are_all_to_do(clock):
    report = started("block-1", "block-2", "readout")
    tell(report, "block-1", 50, 100)
    clock.now = 10
    tell(report, "block-1", 100, 100)
    tell(report, "readout", 100, 100)
    assert report.share == pytest.approx(0.5)
    assert report.summary() == "500 examples/s, 20 s left"


def test_units_of_one_group_are_counted_once(clock):
    """With learned embeddings each unit's event tells where the whole group is."""
    report = started("all")
    tell(report, "block-1", 0, 100)
    clock.now = 10
    tell(report, "block-1", 20, 100)
    tell(report, "block-2", 25, 100)
    tell(report, "readout", 25, 100)
    assert report.share == pytest.approx(0.25)
    assert report.summary() == "250 examples/s, 30 s left"


def test_no_time_is_promised_at_the_beginning(clock):
    report = started("block-1")
    tell(report, "block-1", 50, 1000)
    clock.now = 1
    tell(report, "block-1", 51, 1000)
    assert report.summary() == "100 examples/s"


def test_a_training_of_one_update_promises_none(clock):
    report = started("block-1")
    clock.now = 1
    tell(report, "block-1", 1, 1)
    assert report.summary() == "0 examples/s"
