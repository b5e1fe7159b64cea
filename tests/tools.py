"""What many tests need: small settings, noise images, the weights of a run, ways to stop one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from noprop.build import Task
from noprop.data import Examples, Normalization
from noprop.run.groups import group_folder
from noprop.training.commits import Commit, latest, load_part

__all__ = [
    "IN_PROCESS",
    "LEARNED",
    "NOISE",
    "NOISE_TASK",
    "SMALL",
    "TWO_BLOCKS",
    "Clock",
    "Killed",
    "alter",
    "assert_same",
    "commit_of",
    "files_of",
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


class Killed(BaseException):
    """As abrupt as a signal."""


class Clock:
    """A second passes between any two looks: every update is reported, every few are saved."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


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
