"""What all tests share: one thread, hypothesis' profile, and the folder of the real data sets."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

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


@pytest.fixture
def three_threads():
    """Three torch threads during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Callable[[str], Path]:
    """A function from a recipe of digits to a small run of it, trained once. Change only copies."""
    runs: dict[str, Path] = {}

    def run_of(recipe: str) -> Path:
        if recipe not in runs:
            folder = tmp_path_factory.mktemp("trained") / recipe
            length = "--steps=4" if recipe[7:] in ("ct", "fm", "adjoint") else "--num-blocks=2"
            size = ["--epochs=1", "--train-size=200", "--workers=1", "--runs=2", "--quiet"]
            assert main(["train", recipe, length, *size, f"--run={folder}"]) == 0
            runs[recipe] = folder
        return runs[recipe]

    return run_of


def unpack_once(name: str, folder: Path) -> None:
    """Restore a stored data set; parallel test workers wait for the first of them."""
    if name not in UNPACK_NAMES:
        return
    folder.mkdir(exist_ok=True)
    stamp = folder / f".unpacked-{name}"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or SOURCES[name].missing(folder):
            only = UNPACK_NAMES[name]
            subprocess.run([sys.executable, str(UNPACK), str(folder), "--only", only], check=True)
            stamp.touch()
