"""Scripts that worker processes cannot import are refused before anything is written."""

import subprocess
import sys

import pytest

CALL = (
    "noprop.train('digits-dt', folder='r', workers={workers}, evaluation='off', epochs=1,"
    " overrides={{'data.train_size': 100, 'method.num_blocks': 2, 'method.encoder': 'mlp'}})\n"
)
HINT = 'def main(): …; if __name__ == "__main__": main()'


def ran(folder, code: str, *, given: str = "file") -> tuple[int, str]:
    """Return the status and the last line on stderr of a script, from a file or from stdin."""
    (folder / "script.py").write_text(code)
    command = [sys.executable, "script.py"] if given == "file" else [sys.executable, "-"]
    done = subprocess.run(
        command,
        cwd=folder,
        input=code if given == "stdin" else "",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


@pytest.mark.parametrize("given", ["file", "stdin"])
def test_a_script_without_a_guard_is_told_the_lines_to_add(tmp_path, given):
    status, last = ran(tmp_path, "import noprop\n\n" + CALL.format(workers=2), given=given)
    assert status == 1
    assert HINT in last
    assert ("script.py, line 3" if given == "file" else "<stdin>") in last
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("before", "call", "workers"),
    [
        ("if __name__ == '__main__':\n    ", CALL, 2),
        ("def main():\n    ", CALL + "\nif __name__ == '__main__':\n    main()\n", 2),
        ("", CALL, 1),
    ],
    ids=["guard", "function", "one worker"],
)
def test_a_script_that_workers_can_import_trains(tmp_path, before, call, workers):
    status, last = ran(tmp_path, "import noprop\n\n" + before + call.format(workers=workers))
    assert status == 0, last
    assert (tmp_path / "r" / "model.json").exists()
