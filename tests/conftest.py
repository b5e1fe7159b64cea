"""What all tests share: one thread, hypothesis' profile, trained runs, and the real data sets."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from noprop import encoders, networks
from noprop.cli import main
from noprop.data import SOURCES

REPOSITORY = Path(__file__).resolve().parents[1]
# Stored copies that some work places have beside the checkout, and the script that restores them.
UNPACK = REPOSITORY.parent / "shared" / "data" / "unpack.py"
UNPACK_NAMES = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "tiny-imagenet": "tiny",
}

# Two threads on two busy cores are many times slower than one on small operations; the processes
# that tests start follow the variable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("noprop", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("noprop")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from a catalogue name to a data folder that has that data set.

    The folder is ``NOPROP_DATA`` where that is set, else ``.data`` of the checkout, filled from the
    stored copies where there are any. Where the data cannot be had the test is skipped and says
    why; with ``NOPROP_REQUIRE_DATA=1`` it fails instead.
    """
    given = os.environ.get("NOPROP_DATA")  # read now: tests of the search path change it

    def folder_of(name: str) -> Path:
        folder = Path(given) if given else REPOSITORY / ".data"
        if not given and UNPACK.is_file():
            unpack_once(name, folder)
        if missing := SOURCES[name].missing(folder):
            reason = f"no {name}: {folder} lacks {', '.join(missing)}; set NOPROP_DATA"
            if os.environ.get("NOPROP_REQUIRE_DATA") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return folder

    return folder_of


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """Leave out fsync, which takes milliseconds.

    A killed process loses nothing that it has written; only a machine that loses power does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def three_threads():
    """Three torch threads during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Networks of width 8, for tests that write their files dozens of times."""
    for module in (encoders, networks):
        monkeypatch.setattr(module, "WIDTH", 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give each process a stretch of tests, so that few files are divided and make things twice."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function from a name, and what makes a folder, to that folder.

    It is made once, though pytest-xdist may run the tests in several processes. A test must not
    change it: it works on a copy.
    """
    base = tmp_path_factory.getbasetemp()
    # The folder of the session, in which each process of pytest-xdist has one of its own.
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    place.mkdir(exist_ok=True)

    def find(name: str, make: Callable[[Path], object]) -> Path:
        folder, stamp = place / name, place / f"{name}.made"
        with FileLock(place / f"{name}.lock"):
            if not stamp.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a test that failed here
                make(folder)
                stamp.touch()
        return folder

    return find


@pytest.fixture(scope="session")
def trained_run(made_once) -> Callable[[str], Path]:
    """A function from a recipe of digits to a small run of it, trained once. Change only copies."""

    def run_of(recipe: str) -> Path:
        length = "--steps=4" if recipe[7:] in ("ct", "fm", "adjoint") else "--num-blocks=2"
        size = ["--epochs=1", "--train-size=200", "--workers=1", "--runs=2", "--quiet"]

        def train(folder: Path) -> None:
            with redirect_stdout(io.StringIO()):  # else a test that is the first reads it
                assert main(["train", recipe, length, *size, f"--run={folder}"]) == 0

        return made_once(recipe, train)

    return run_of


def unpack_once(name: str, folder: Path) -> None:
    """Restore a stored data set; parallel test workers wait for the first that needs the same."""
    if name not in UNPACK_NAMES:
        return
    folder.mkdir(exist_ok=True)
    stamp = folder / f".unpacked-{name}"
    with FileLock(folder / f".lock-{name}"):
        if not stamp.exists() or SOURCES[name].missing(folder):
            only = UNPACK_NAMES[name]
            subprocess.run([sys.executable, str(UNPACK), str(folder), "--only", only], check=True)
            stamp.touch()
