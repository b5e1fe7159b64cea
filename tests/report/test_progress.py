"""How much is done and how long it takes still, by a clock that the test holds."""

import pytest

from noprop.report import progress
from noprop.report.progress import Report
from noprop.training.events import (
    Damaged,
    Deadline,
    Epoch,
    Evaluating,
    Failed,
    Finished,
    Found,
    Grid,
    Progress,
    Restarted,
    Started,
    Step,
    Tick,
    Trained,
)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def started(*groups: str) -> Report:
    report = Report(100, quiet=True)
    report(Started(groups, 1, quick=["readout"]))
    return report


def tell(report: Report, unit: str, work: int, of: int) -> None:
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
    assert report.shares()[1] == pytest.approx(0.9)
    assert report.pace() == "100 examples/s, 10 s left"


def test_groups_that_have_not_begun_are_all_to_do(clock):
    report = started("block-1", "block-2", "readout")
    tell(report, "block-1", 50, 100)
    clock.now = 10
    tell(report, "block-1", 100, 100)
    tell(report, "readout", 100, 100)
    assert report.shares()[1] == pytest.approx(0.5)
    assert report.pace() == "500 examples/s, 20 s left"


def test_units_of_one_group_are_counted_once(clock):
    """With learned embeddings each unit's event tells where the whole group is."""
    report = started("all")
    tell(report, "block-1", 0, 100)
    clock.now = 10
    tell(report, "block-1", 20, 100)
    tell(report, "block-2", 25, 100)
    tell(report, "readout", 25, 100)
    assert report.shares()[1] == pytest.approx(0.25)
    assert report.pace() == "250 examples/s, 30 s left"


def test_a_unit_that_stops_early_is_done(clock):
    """Two of ten epochs' worth of work in 10 s were all of block-1: as much is left of block-2."""
    report = Report(100, quiet=True)
    report(Started(["block-1", "block-2"], 1, epochs=10))
    tell(report, "block-1", 0, 100)
    clock.now = 10
    tell(report, "block-1", 20, 100)
    report(Trained(["block-1"], 10.0, 1.0, "a counter", last_epoch=2, best_epoch=1))
    assert report.shares() == (0, 0.5)
    assert report.pace() == "200 examples/s, 10 s left"


def test_a_unit_with_patience_tells_the_loss_of_the_weights_that_it_keeps(clock, capsys):
    """Not the training loss of its last epoch, whose weights are gone."""
    report = Report(100)
    report(Started(["block-1", "block-2"], 1, epochs=10))
    for unit, first in (("block-1", 0.5), ("block-2", 0.25)):
        for epoch, loss in enumerate((9.0, first, 7.0, 8.0), start=1):
            report(Epoch(unit, epoch, 123.0, {}, loss))
    report(Trained(["block-1"], 10.0, 1.0, "a counter", last_epoch=4, best_epoch=2))
    report(Trained(["block-2"], 10.0, 1.0, "a counter", last_epoch=10, best_epoch=3))
    report(Trained(["a", "b"], 10.0, 1.0, "a counter", last_epoch=4, best_epoch=2))
    assert capsys.readouterr().err.splitlines()[1:] == [
        "block-1 trained in 10.0 s; stopped after epoch 4 of 10, keeps the weights of epoch 2, "
        "whose validation loss is 0.5",
        "block-2 trained in 10.0 s; keeps the weights of epoch 3, whose validation loss is 7",
        "a, b trained in 10.0 s; stopped after epoch 4 of 10, keeps the weights of epoch 2",
    ]


def test_no_time_is_promised_at_the_beginning(clock):
    report = started("block-1")
    tell(report, "block-1", 50, 1000)
    clock.now = 1
    tell(report, "block-1", 51, 1000)
    assert report.pace() == "100 examples/s"


def test_a_training_of_one_update_promises_none(clock):
    report = started("block-1")
    clock.now = 1
    tell(report, "block-1", 1, 1)
    assert report.pace() == ""


def test_the_start_of_the_workers_is_no_part_of_the_pace(clock):
    """30 s until the first progress: the work of 10 s says that 90 s are left, not 360."""
    report = started("block-1")
    clock.now = 30
    tell(report, "block-1", 0, 100)
    clock.now = 40
    tell(report, "block-1", 10, 100)
    assert report.pace() == "100 examples/s, 1 min 30 s left"


def test_the_evaluation_is_part_of_the_time_left_and_then_has_its_own(clock, capsys):
    """Evaluation of a third of the training's time: after half of 60 s, 30 + 20 s are left."""
    report = Report()
    report(Started(["network"], 1, evaluation=1 / 3))
    tell(report, "network", 0, 100)
    clock.now = 30
    tell(report, "network", 50, 100)
    clock.now = 60
    tell(report, "network", 100, 100)
    report(Evaluating(text="100 of 1,000 test examples"))
    clock.now = 80
    report(Evaluating(share=0.25))
    assert capsys.readouterr().err.splitlines() == [
        "training 1 unit on 1 worker",
        " 38 %  30 s  network epoch 1  loss 1  50 s left",
        " 75 %  1 min 0 s  network epoch 1  loss 1  20 s left",
        "evaluating 100 of 1,000 test examples",
        " 25 %  1 min 20 s  evaluating  1 min 0 s left",
    ]


def test_a_group_of_all_units_is_not_one_unit(capsys):
    Report()(Started(["all"], 1))
    assert capsys.readouterr().err == "training all units together on 1 worker\n"


# -- several runs ----------------------------------------------------------------------------------


def of_run(run: str, unit: str, work: int, of: int) -> Progress:
    return Progress(unit, 1, work, of, work, of, 1.0, run=run)


def test_runs_are_counted_by_their_work(clock):
    """Training is nine tenths of a run; the run of triple work counts three times."""
    report = Report(quiet=True)
    report(Grid({"a": 1.0, "b": 3.0}))
    report(Started(["network"], 1, run="b"))
    report(of_run("b", "network", 0, 10))
    clock.now = 10
    report(of_run("b", "network", 5, 10))
    assert report.shares() == (0, pytest.approx(0.9 * 0.5 * 3 / 4))
    assert report.pace() == "20 s left"  # 0.3375 took 10 s


def test_what_an_earlier_command_did_promises_nothing(clock):
    """A run that is finished, and groups that are trained, took no time of this command."""
    report = Report(quiet=True)
    report(Grid({"a": 1.0, "b": 1.0}))
    report(Finished(RESULTS, run="a"))
    report(Found("block-1", run="b"))
    report(Started(["block-2"], 1, run="b"))
    clock.now = 10
    assert report.pace() == ""
    report(of_run("b", "block-2", 0, 10))
    clock.now = 20
    report(of_run("b", "block-2", 10, 10))
    assert report.shares() == pytest.approx(((1 + 0.45) / 2, (1 + 0.9) / 2))


def test_a_run_that_failed_is_no_work(clock):
    """Nor work that was done: of the other half was done in 10 s."""
    report = Report(quiet=True)
    report(Grid({"a": 1.0, "b": 1.0}))
    report(Failed("no such data", run="a"))
    clock.now = 10
    report(Started(["network"], 1, run="b"))
    report(of_run("b", "network", 0, 10))
    clock.now = 20
    report(of_run("b", "network", 5, 10))
    assert report.shares()[1] == pytest.approx(0.45)
    report(Failed("killed", run="b"))
    assert report.shares() == (1, 1)
    assert report.pace() == ""


RESULTS = {
    "default": "mean",
    "modes": {"mean": {"accuracy": 97.5}, "single": {"accuracy": 96.25}},
}


def test_a_grid_is_told_in_lines(clock, capsys):
    """Each run's end, what is damaged or restarted, and how far all are; no details of a run."""
    report = Report()
    report(Grid({"a": 1.0, "b": 1.0, "c": 2.0}, done=2))
    report(Started(["block-1", "readout"], 1, run="a", quick=["readout"]))
    report(Started(["all"], 1, run="b"))
    report(Epoch("block-1", 1, 1.0, {}, 1.0, facts={"mixing": 1.0}, run="a"))
    report(Damaged(["block-1"], "a file is damaged", 3, 4, run="b"))
    report(Restarted("block-1", 2, "elsewhere", run="b"))
    clock.now = 10
    report(of_run("a", "block-1", 5, 10))
    clock.now = 12  # a moment later: no line
    report(of_run("a", "block-1", 6, 10))
    report(Trained(["block-1"], 1.0, peak_memory_mb=1.0, memory_counter="rss", run="a"))
    report(Evaluating(run="a"))
    clock.now = 30
    report(Tick())
    report(Finished(RESULTS, run="a"))
    report(Failed("no\nsuch data", run="b"))
    report(Deadline(1))
    assert capsys.readouterr().err.splitlines() == [
        "training 3 runs; 2 are already finished",
        "b: a file is damaged; resuming from the one before it, update 3 of 4",
        "b: block-1: its worker was lost; resuming from its last checkpoint on elsewhere",
        " 11 %  10 s  [0/3] a training 45 %, b training 0 %",
        " 22 %  30 s  [0/3] a evaluating 90 %, b training 0 %  2 min 18 s left",
        "[1/3] a: accuracy 97.50 %, one chain 96.25 %",
        r"[2/3] b: failed: no\nsuch data",
        "the time is over with 1 run left; resume with the same command",
    ]


def test_a_single_run_is_told_in_lines(clock, capsys):
    report = Report(100)
    report(Started(["block-1", "block-2"], 2, shards=3, quick=["readout"], epochs=9))
    report(Found("readout"))
    clock.now = 10
    report(Progress("block-1", 2, 5, 10, 5, 10, 1.25))
    clock.now = 20
    report(Progress("block-1", 3, 7, 10, 7, 10, 1.25))
    facts = {"alpha_bar_0": 0.1, "gamma": [0.0] * 20}
    embedding = {"least_distance": 0.5, "least_length": 0.25, "greatest_length": 1.0}
    report(Epoch("block-1", 3, 1.0, {}, None, embedding, facts))
    report(Trained(["block-1"], 1.0, peak_memory_mb=1.0, memory_counter="rss"))
    report(Evaluating())
    assert capsys.readouterr().err.splitlines() == [
        "training 2 units on 2 workers, mini-batches in 3 shards",
        "readout is already trained",
        " 25 %  10 s  block-1 epoch 2/9  loss 1.25",
        " 35 %  20 s  block-1 epoch 3/9  loss 1.25  20 examples/s, 1 min 5 s left",
        "epoch 3, block-1: ᾱ(0) 0.1; embeddings at least 0.5 apart, 0.25 to 1 long",
        "block-1 trained in 1.0 s, loss 1.25",
        "evaluating",
    ]


def test_steps_of_a_benchmark_are_told_in_lines(clock, capsys):
    report = Report()
    for number in (1, 2, 3):
        clock.now = 10.0 * number
        report(Step(f"step {number}", number, 4))
    assert capsys.readouterr().err.splitlines() == [
        " 25 %  10 s  step 1  30 s left",
        " 50 %  20 s  step 2  20 s left",
        " 75 %  30 s  step 3  10 s left",
    ]


def test_bars_show_each_run_and_take_no_name_for_markup(monkeypatch, clock, capsys):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    report = Report()
    report(Grid({"[/red]\x1b[2J": 1.0}))
    report(Started(["network"], 1, run="[/red]\x1b[2J"))
    clock.now = 10
    report(of_run("[/red]\x1b[2J", "network", 5, 10))
    report.close()
    shown = capsys.readouterr().err
    assert r"[/red]\x1b[2J" in shown
    assert "[0/1]" in shown
