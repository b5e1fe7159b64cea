"""What many tests need: small settings, noise images, the weights of a run, ways to stop one."""

import itertools
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from subprocess import TimeoutExpired
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from noprop.cli import main
from noprop.config import RunConfig
from noprop.data import Examples, Normalization
from noprop.encoders import EncoderFactory
from noprop.model import Model
from noprop.run.run import Run
from noprop.run.units import group_folder
from noprop.task import RunData, Task
from noprop.training import commits
from noprop.training.commits import LAST, Commit, latest, load_part
from noprop.training.events import Emit, print_nothing

__all__ = [
    "IN_PROCESS",
    "LEARNED",
    "NOISE",
    "NOISE_DATA",
    "NOISE_TASK",
    "SMALL",
    "TWO_BLOCKS",
    "Clock",
    "Command",
    "Killed",
    "alter",
    "assert_same",
    "commit_of",
    "files_of",
    "pause_in_commit",
    "remove_package",
    "rng",
    "train_run",
    "weights",
]

LEARNED = {"method.embedding": "orthogonal", "method.learned": True}
# By this process alone, and to the same bits on every machine.
IN_PROCESS = {"train.workers": 1, "train.device": "cpu", "train.precision": "float32"}
# With that, and a number of blocks or steps: a run on digits that takes about a second.
SMALL = {
    **IN_PROCESS,
    "method.encoder": "mlp",
    "data.train_size": 200,
    "train.epochs": 1,
    "evaluation.runs": 2,
}
TWO_BLOCKS = {**SMALL, "method.num_blocks": 2}

# 72 noise images of ten classes: four mini-batches of 16 and a remainder.
NOISE = Examples(
    torch.randint(
        256, (72, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    ),
    torch.arange(72) % 10,
)
NOISE_TASK = Task((1, 8, 8), tuple("0123456789"), Normalization.of(NOISE.x))
NOISE_DATA = RunData(NOISE_TASK, NOISE, NOISE.take(torch.arange(8)), NOISE.take(torch.arange(9)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Killed(BaseException):
    """As abrupt as a signal."""


class Clock:
    """A second passes between any two looks: every update is reported, every few are saved."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def train_run(
    folder: Path,
    config: RunConfig,
    data: RunData,
    emit: Emit = print_nothing,
    encoder: EncoderFactory | None = None,
) -> Model:
    """Train a run whose folder exists, and put its model together without evaluating it."""
    run = Run(folder, config, data, encoder)
    run.train(emit=emit)
    return run.model()


def commit_of(folder: Path, group: str) -> Commit:
    """The last commit of a group of a run, whose files are whole."""
    found = latest(group_folder(folder, group), files=True)
    assert found is not None
    return found.commit


def files_of(folder: Path, group: str) -> dict[str, Path]:
    """The files of the last commit of a group, by part; and the manifest, as ``commit``."""
    place = group_folder(folder, group)
    files = {name: place / part.file for name, part in commit_of(folder, group).files.items()}
    return files | {"commit": place / "commit.json"}


def weights(folder: Path, *groups: str) -> dict[str, Tensor]:
    """Weights, statistics and optimizer state of some groups of a run, all of them unless given."""
    found: dict[str, Tensor] = {}
    for group in groups or sorted(path.name for path in (folder / "units").iterdir()):
        for part in commit_of(folder, group).files.values():
            tensors = load_part(group_folder(folder, group), part)
            found |= {f"{group}:{name}": tensor for name, tensor in tensors.items()}
    return found


def assert_same(a: Mapping[str, Tensor] | Path, b: Mapping[str, Tensor] | Path) -> None:
    """The same tensors to the last bit, or those of two runs."""
    x, y = (weights(side) if isinstance(side, Path) else side for side in (a, b))
    assert x
    assert x.keys() == y.keys()
    assert not [name for name in x if not torch.equal(x[name], y[name])]


def alter(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


def pause_in_commit(number: int, mark: Path) -> None:
    """Halt this process in its commit of a number, of which half is written; ``mark`` then exists.

    So a kill finds it there, however busy the machine is.
    """
    count, write = itertools.count(1), commits.write_whole

    def write_half(path: Path, content: bytes, before: Path | None = None) -> None:
        if path.name == LAST and next(count) == number:
            half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            half.write_bytes(content[: len(content) // 2])
            mark.touch()
            threading.Event().wait()
        write(path, content, before)

    commits.write_whole = write_half


class Command:
    """``noprop`` in a fork of this process, and in a session of its own.

    The fork has imported torch and the package already: it starts in hundredths of a second, a new
    interpreter in seconds. It has the methods of ``subprocess.Popen`` that the tests need.

    Args:
        argv: The arguments of the command.
        before: Called in the new process before the command.

    Attributes:
        pid: The number of the process.
        returncode: As ``subprocess`` gives it; None until the end has been seen.
    """

    def __init__(self, *argv: str, before: Callable[[], object] = lambda: None):
        self.returncode: int | None = None
        self._output = [tempfile.TemporaryFile() for _ in range(2)]
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            self.pid = os.fork()  # of the main thread alone; no other holds a lock of ours
        if self.pid == 0:
            self._run(argv, before)

    def _run(self, argv: tuple[str, ...], before: Callable[[], object]) -> NoReturn:
        status = 1
        try:
            os.setsid()
            for descriptor, file in enumerate(self._output, start=1):
                os.dup2(file.fileno(), descriptor)
            sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8") for n in (1, 2))
            # The servers of this process are none of the fork's: it starts its own.
            forkserver._forkserver.__init__()
            resource_tracker._resource_tracker.__init__()
            before()
            status = main(list(argv))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """Return the status, or None where the command still runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for the end, and return what the command wrote to stdout and stderr."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutExpired("noprop", timeout)
            time.sleep(0.005)
        written = []
        for file in self._output:
            with file:
                file.seek(0)
                written.append(file.read().decode())
        return written[0], written[1]


def remove_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have every import of a package fail during a test, as if it were not installed."""
    for module in [name, *(m for m in sys.modules if m.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
