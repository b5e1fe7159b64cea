"""Pages: the paper's numbers beside ours, and a difference said with what was looked at."""

import pytest

from made_records import made
from noprop.experiments.cells import EXPERIMENTS, Cell
from noprop.experiments.checks import checks
from noprop.experiments.pages import page, write_pages
from noprop.experiments.records import add_record, summaries

DT = "| NoProp-DT (one-hot) |"


def rows(text: str, start: str = DT) -> list[str]:
    """Of the table of MNIST."""
    part = text.split("## MNIST")[1].split("## CIFAR-10")[0]
    return [line for line in part.splitlines() if line.startswith(start)]


def test_full_and_scaled_results_have_rows_of_their_own():
    records = [made(single=99.40, seed=s) for s in (0, 1, 2)]
    records.append(made(scale="epochs=0.1", epochs=10, single=98.0))
    full, scaled = rows(page("table1", summaries(records)))
    assert "| full | 3 × 5 |" in full
    assert "99.47 ± 0.05" in full  # the paper's
    assert "99.40" in full
    assert "98.00" not in full
    assert "10 of 100 epochs" in scaled
    assert "98.00" in scaled
    assert "98.50" in scaled  # averaged


def test_a_cell_that_was_not_run_says_so():
    (row,) = rows(page("table1", []))
    assert "not run" in row
    assert "99.47 ± 0.05" in row


@pytest.mark.parametrize(("ours", "noted"), [(99.40, False), (99.20, True), (99.80, True)])
def test_beyond_two_standard_errors_a_line_says_what_was_checked(ours, noted):
    """The paper has 99.47 ± 0.05: two errors of a difference are 0.10 to 0.11 points."""
    text = page("table1", summaries([made(single=ours, seed=s, error=0.01) for s in (0, 1, 2)]))
    notes = [line for line in text.splitlines() if line.startswith("- NoProp-DT (one-hot):")]
    assert len(notes) == noted
    if noted:
        assert f"{ours - 99.47:+.2f} points" in notes[0]
        assert "919,946 parameters a block, as in Table 5" in notes[0]
        assert "Algorithm 1" in notes[0]


def test_a_scaled_result_is_no_difference_from_the_paper():
    text = page("table1", summaries([made(scale="epochs=0.1", epochs=10, single=50.0)]))
    assert "Beyond two standard errors" not in text


def test_checks_look_and_do_not_recite():
    """A run with other settings, or another order, is told from the paper's."""
    record = made(cell=Cell("mnist", "dt", "d20"))
    (summary,) = summaries([record])
    assert "batch, epochs, optimizer, learning rate and weight decay of Table 4" in checks(summary)
    record["config"]["train"] |= {"lr": 0.01, "order": "parallel"}
    found = checks(summaries([record])[0])
    assert "unlike Table 4: lr 0.01" in found
    assert "all blocks on each mini-batch, not Algorithm 1" in found
    assert any("SNR(t) − SNR(t−1) > 0" in line for line in found)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_page_can_be_written(tmp_path, name):
    curve = ({"epoch": 1, "seconds": 3.0, "single": 50.0, "mean": 60.0},
             {"epoch": 2, "seconds": 6.0, "single": 70.0, "mean": 80.0})  # fmt: skip
    for cell in EXPERIMENTS[name]:
        for seed in (0, 1):
            add_record(tmp_path / "results.jsonl", made(cell, seed=seed, curve=curve))
    paths = write_pages([name], tmp_path / "results.jsonl", tmp_path / "runs", tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    assert text.startswith(f"# {'Table' if name.startswith('table') else 'Fig.'} {name[-1]}: ")
    pictures = [p for p in paths if p.suffix == ".png"]
    assert len(pictures) == (name in ("fig4", "fig6", "fig7"))  # Fig. 3 wants its run
    assert all(f"]({p.name})" in text for p in pictures)
