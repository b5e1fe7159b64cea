"""The README's Python runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert (tmp_path / "runs" / "digits-dt" / "model.safetensors").is_file()
