"""``noprop train --engine ray`` as a person meets it: what it prints, and what it leaves."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from noprop.cli import main
from noprop.config import replace, to_toml
from noprop.model import open_run
from ray_runs import LONG, assert_same, told, trained
from tools import commit_of


def started(folder: Path, config, *argv: str) -> subprocess.Popen[str]:
    """The command in a process, and a session, of its own; it starts a Ray for itself."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'noprop[ray]'")
    file = folder.with_suffix(".toml")
    file.write_text(to_toml(config))
    command = [sys.executable, "-m", "noprop", "train", "--config", str(file), "--engine", "ray"]
    return subprocess.Popen(
        [*command, "--run", str(folder), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses on which these processes wait for others; some there must be."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "all_of_them"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
)
def test_a_signal_leaves_checkpoints_and_no_process(tmp_path, number, status, all_of_them):
    """Ctrl-C reaches Ray's processes as well, a scheduler's SIGTERM the command alone.

    Until then nothing of Ray is to be reached from another machine.
    """
    config = replace(LONG, {"train.checkpoint_every": 1e9, "train.epochs": 400})
    folder = tmp_path / "r"
    process = started(folder, config, "--units", "block-1")
    deadline = time.monotonic() + 90
    while not told(folder, "epoch") and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert listening([psutil.Process(process.pid), *children]) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    (os.killpg if all_of_them else os.kill)(process.pid, number)
    out, text = process.communicate(timeout=60)
    assert process.returncode == status, text
    assert out == ""
    lines = text.splitlines()
    assert lines[0] == "training 1 unit as tasks of Ray, 1 at a time"
    how = f"noprop train --resume {folder} --units block-1 --engine ray"
    assert lines[-1] == f"stopped; resume with: {how}"
    assert all("block-1 epoch" in line for line in lines[1:-1])
    assert not psutil.wait_procs(children, timeout=20)[1]
    commit = commit_of(folder, "block-1")
    assert 25 <= commit.position < commit.total


@pytest.mark.slow
def test_kill_minus_9_of_the_command_ends_its_ray(tmp_path, whole):
    """And training resumes from its checkpoints without Ray."""
    folder = tmp_path / "r"
    process = started(folder, LONG, "--units", "block-1")
    deadline = time.monotonic() + 90
    while not told(folder, "epoch") and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if child.name().startswith("ray::r/block-1")]
    assert workers
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    trained(folder, open_run(folder), units=["block-1"])
    assert_same(whole(LONG), folder, LONG, ["block-1"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--address", "auto"], "--address: is for --engine ray"),
        (["--storage", "s3://x"], "--storage: is for --engine ray"),
        (["--gpus-per-unit", "0.5"], "--gpus-per-unit: is for --engine ray"),
        (["--engine", "ray", "--workers", "2", "--address", "a:1"], "--workers: with --address"),
        (["--engine", "ray", "--storage", "memory://x"], "storage: memory://x is in the memory"),
        (["--engine", "ray", "--address", "127.0.0.1:9"], "address: wanted a Ray cluster that ans"),
    ],
)
def test_mistakes_are_one_line_and_no_folder(capsys, tmp_path, argv, words):
    assert main(["train", "--run", str(tmp_path / "r"), *argv]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"noprop: error: {words}")
    assert text.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_without_ray_the_error_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["train", "--run", str(tmp_path / "r"), "--engine", "ray"]) == 1
    text = capsys.readouterr().err
    assert text == "noprop: error: engine ray needs ray: pip install 'noprop[ray]'\n"
