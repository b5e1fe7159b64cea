"""What reaches the terminal: nothing that commands it, in any encoding, and no trace of a pipe."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import noprop
from mistakes import FAST, images_by_class
from noprop.cli import main
from noprop.paper.tables import markdown
from noprop.report.progress import Report
from noprop.terminal import printable, readable_output, show
from noprop.training.events import Found

SOURCE = Path(noprop.__file__).parent
# Escape codes, a bell, a newline with a table's bar, a right-to-left override, a formula, C1, bytes
# that are no UTF-8, and markup of rich.
NAMES = [
    *("\x1b[31mred\x07", "a\nb|c", "\u202eevil", "=1+cmd|x", "\x9b2Jnaïve γ", "\udcff", "[bold]$x"),
    *("-1", "-x"),
]


@given(st.text())
def test_printable_text_is_one_line_and_commands_nothing(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert printable(text) == text or not text.isprintable()


def test_bytes_of_a_file_name_are_shown_as_bytes():
    assert printable(os.fsdecode(b"x\xff\n\x1b")) == r"x\xff\n\x1b"


def test_all_output_passes_one_place():
    """A text printed elsewhere is one that nobody escapes."""
    prints = re.compile(r"(?<![\w.])print\(|std(?:out|err)\.write")
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if prints.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"terminal.py", "bench/memory.py", "data/download.py"}  # numbers; a bar


def test_files_are_read_in_an_encoding_of_their_own():
    """Not in that of the locale, which another machine has otherwise."""
    for path in SOURCE.rglob("*.py"):
        assert not re.search(
            r"read_text\(\)|write_text\(\w+\)", path.read_text(encoding="utf-8")
        ), path


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run on a folder of images whose classes are called so, and the images."""
    place = tmp_path_factory.mktemp("hostile")
    images_by_class("images", NAMES, count=5)(place)
    run, images = place / "run", place / "images"
    assert main(["train", *FAST, "--dataset", str(images), "--run", str(run)]) == 0
    return run, sorted(str(path) for path in images.glob("*/0.png"))


def all_printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_names_from_a_stranger_command_no_terminal(capsys, hostile_run):
    run, files = hostile_run
    for command in (["predict", str(run), *files], ["evaluate", str(run)], ["plot", str(run)]):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert all_printable(out + err)
    table = ["predict", str(run), *files]
    assert main(table) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(files)


def test_json_has_the_names_as_they_are(capsys, hostile_run):
    run, files = hostile_run
    assert main(["predict", str(run), *files, "--json"]) == 0
    out = capsys.readouterr().out
    assert all_printable(out)
    answers = json.loads(out)
    assert [a["file"] for a in answers] == files
    assert set(answers[0]["probabilities"]) == set(NAMES)


def test_csv_has_one_line_an_image_and_no_formula(capsys, hostile_run):
    run, files = hostile_run
    assert main(["predict", str(run), *files, "--format", "csv"]) == 0
    out = capsys.readouterr().out
    assert all_printable(out)
    head, *rows = csv.reader(io.StringIO(out))
    assert len(rows) == len(out.splitlines()) - 1 == len(files)
    assert {"'=1+cmd|x", "'-x", "-1", r"a\nb|c"} <= set(head)
    assert {row[1] for row in rows} <= set(head)


def test_markdown_keeps_its_columns():
    lines = markdown(["a", "b"], [["x|y", "u\nv"]]).splitlines()
    assert lines[2] == r"| x\|y | u\nv |"


def test_progress_takes_no_text_for_markup(monkeypatch, capsys):
    """On a terminal rich would read ``[/red]`` as the end of a colour, and fail."""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    report = Report(1)
    report(Found("[/red]\x1b[2J"))
    report.close()
    assert r"[/red]\x1b[2J is already trained" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_every_encoding_is_printed(monkeypatch, hostile_run, encoding):
    """What an encoding lacks is spelled where the package itself says it, or else escaped."""
    run, files = hostile_run
    bound = "+/- 0.00" if encoding == "ascii" else "± 0.00"
    for argv, words in (
        (["train", "--help"], "sigma of the radial readout"),
        (["bench", "--help"], "bench-2, "),
        (["describe", "digits-ct"], "alpha_bar"),
        (["data"], "1x28x28" if encoding == "ascii" else "1×28×28"),
        (["evaluate", str(run)], bound),
        (["predict", str(run), *files], r"/\u202eevil/0.png"),
        (["predict", str(run), *files, "--format", "csv"], r",\u202eevil,"),
        (["train", "--set", "γ=1"], "unknown field gamma"),
    ):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, stream)
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code
        monkeypatch.undo()
        text = "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)
        assert status == int("--set" in argv), text
        assert words in text


def test_the_handler_of_errors_is_put_back(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with readable_output():
        show("±")
    assert stream.errors == "strict"
    assert stream.buffer.getvalue() == b"+/-\n"


def described_into(monkeypatch, descriptor: int) -> int:
    """Status of a command whose stdout is this."""
    stream = open(descriptor, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    status = main(["describe"])
    monkeypatch.undo()
    stream.close()  # an error here would be a trace at the end of Python
    return status


def test_a_reader_that_leaves_is_no_error(capsys, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    assert described_into(monkeypatch, writer) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    assert described_into(monkeypatch, os.open("/dev/full", os.O_WRONLY)) == 1
    assert capsys.readouterr().err == "noprop: error: No space left on device\n"


def test_closed_streams_are_ones_to_nowhere():
    command = f"{sys.executable} -m noprop train --help <&- >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_was_deleted_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; exec {sys.executable} -m noprop describe"
    done = subprocess.run(["bash", "-c", command], cwd=gone, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("noprop: error: the current folder does not exist any more")
    assert done.stderr.count("\n") == 1
