"""What the tests of engines share: small runs, and a thread that kills workers while they write."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import tools
from noprop.config import RunConfig, replace
from noprop.encoders import EncoderFactory
from noprop.run.folder import create_run
from noprop.run.metrics import read_metrics
from noprop.run.ray_engine import RayEngine
from noprop.run.run import Run
from noprop.run.units import groups_of
from noprop.task import load_data
from noprop.training.events import Emit, print_nothing
from tools import commit_of, weights

CONFIG = replace(
    RunConfig(),
    {
        "method.num_blocks": 2,
        "method.encoder": "mlp",
        "data.train_size": 200,
        "train.epochs": 2,
        "train.batch_size": 8,  # 45 updates a block and more
        "train.workers": 1,
        "train.threads": 1,
        "train.device": "cpu",
        "train.precision": "float32",
        "train.checkpoint_every": 0.0,
        "evaluation.runs": 2,
    },
)
SELDOM = {"train.checkpoint_every": 1e9}
LEARNED = {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 20}
# Long enough to be stopped in the middle: 150 updates a block, each with a checkpoint.
LONG = replace(CONFIG, {"train.epochs": 6})


def trained(
    folder: Path,
    config: RunConfig,
    engine: RayEngine | None = None,
    *,
    units: Sequence[str] | None = None,
    emit: Emit = print_nothing,
    encoder: EncoderFactory | None = None,
) -> Path:
    """A run with every unit trained, and nothing assembled."""
    if not folder.exists():
        create_run(folder, config)
    run = Run(folder, config, load_data(config), encoder)
    run.train(units, engine=engine, emit=emit)
    return folder


def assert_same(a: Path, b: Path, config: RunConfig, groups: Sequence[str] | None = None) -> None:
    """Every tensor of each commit, of trainings that have ended."""
    groups = groups or groups_of(config)
    assert all(commit_of(folder, group).is_last for folder in (a, b) for group in groups)
    tools.assert_same(weights(a, *groups), weights(b, *groups))


def told(folder: Path, kind: str) -> list[dict]:
    """What ``metrics.jsonl`` says of the training, without what the clock and the memory say."""
    apart = {"time", "seconds", "peak_memory_mb"}
    events = [e for e in read_metrics(folder) if e["event"] == kind]
    return [{k: v for k, v in e.items() if k not in apart} for e in events]


class Killer(threading.Thread):
    """Thread that kills, with -9, processes that are writing a file.

    Args:
        folder: Folder of the files; the name of a temporary file contains the process.
        pattern: Pattern of the names of temporary files.
        times: Number of kills.
        after: Pattern of finished files, one of which must exist before the first kill.

    Attributes:
        left: Temporary files that were left, which proves that the kill came during a write.
    """

    def __init__(self, folder: Path, pattern: str, times: int, after: str = "*"):
        super().__init__(daemon=True)
        self.folder, self.pattern, self.times, self.after = folder, pattern, times, after
        self.left: list[Path] = []
        self.over = False
        self.start()

    def run(self) -> None:
        while not self.over and len(self.left) < self.times:
            whole = any(self.folder.glob(self.after))
            for path in self.folder.glob(self.pattern) if whole else ():
                number = path.name.split(".")[-2].partition("-")[0]
                try:
                    os.kill(int(number), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                time.sleep(0.05)
                if path.exists() and path not in self.left:
                    self.left.append(path)
            time.sleep(0.0002)
