"""The README's Python runs as it stands, and its results have the lines of the command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from noprop.evaluate import read_evaluation
from noprop.report.tables import evaluation_text

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    """The first ten scans are the digits 0..9; three epochs know at least eight of them."""
    text = README.read_text()
    (code,) = (part.split("```")[0] for part in text.split("```python\n")[1:])
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = [int(word) for word in done.stdout.splitlines()[0].strip("[]").split(",")]
    assert sum(a == b for a, b in zip(labels, range(10), strict=True)) >= 8
    run = tmp_path / "runs" / "digits-dt"
    assert (run / "model.safetensors").is_file()
    shown = text.split("359 test examples", 1)[1].split("\n```")[0].splitlines()[1:]
    printed = {words(line) for line in evaluation_text(read_evaluation(run)).splitlines()}
    printed.add(words("the run is in runs/digits-dt; see also: noprop plot runs/digits-dt"))
    assert [line for line in shown if line != "..." and words(line) not in printed] == []


def words(line: str) -> str:
    """Return a line of results without its numbers, which other epochs and processors change."""
    line = re.sub(r"( ± )?<?\d+(\.\d+)?( to \d+\.\d+)?", "", line)
    return " ".join(line.replace("-", "").split())
