"""The settings of a benchmark, and the generated images that it runs on."""

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.errors import ConfigError
from noprop.recipes import find_recipe
from noprop.task import Task

__all__ = ["SHAPES", "Settings"]

# Data sets of Fig. 5; speed does not depend on the content of the images.
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}

# The paper's accuracy on the test split, of one chain of NoProp-DT with one-hot embeddings.
TARGETS = {"mnist": 99.47, "cifar10": 79.25, "cifar100": 45.93}

METHODS = ("dt", "ct", "fm", "backprop", "adjoint")  # those with a plain loop to compare with
MOST = {"blocks": 10_000, "steps": 100_000, "images": 100_000, "workers": 1024, "rounds": 1000}


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark.

    Attributes:
        dataset: Data set of the images' shape and of the recipes; a name of :data:`SHAPES`.
        methods: Methods to measure; ``fast``, the recipe DATASET-fast, in the suite ``accuracy``.
        blocks: T of ``dt`` and ``backprop``.
        steps: T in prediction of the other methods.
        solver_steps: T in training of ``adjoint``.
        images: Number of images of a measurement of prediction.
        workers: Greatest number of processes of NoProp-DT; threads of the other methods and of
            prediction.
        rounds: Rounds of every measurement.
        seconds: Approximate duration of a contestant's run in a round, in seconds.
        target: Accuracy that the suite ``accuracy`` aims at, in percent; the paper's on the data
            set unless given.
        data_dir: First folder in which the suite ``accuracy`` looks for data.
    """

    dataset: str = "mnist"
    methods: tuple[str, ...] = METHODS
    blocks: int = 10
    steps: int = 1000
    solver_steps: int = 10
    images: int = 2000
    workers: int = 1
    rounds: int = 5
    seconds: float = 3.0
    target: float | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.dataset not in SHAPES:
            raise ConfigError(f"--dataset: {self.dataset!r} is none of {', '.join(SHAPES)}")
        known = (*METHODS, "fast")
        for method in self.methods:
            if method not in known:
                what = f"{method!r} is" if method else "an empty name is"
                raise ConfigError(f"--methods: {what} none of {', '.join(known)}")
            if self.methods.count(method) > 1:
                raise ConfigError(f"--methods: {method} is given twice")
        if "adjoint" in self.methods and importlib.util.find_spec("torchdiffeq") is None:
            raise ConfigError("--methods: adjoint needs torchdiffeq: pip install 'noprop[ode]'")
        for name, most in MOST.items():
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")
            if value > most:
                raise ConfigError(f"--{name} must be at most {most:,}, got {value:,}")
        if not 0 < self.seconds <= 3600:
            raise ConfigError(f"--seconds must lie in 0..3600, got {self.seconds}")
        if self.target is not None and not 0 < self.target <= 100:
            raise ConfigError(f"--target must lie in 0..100, got {self.target:g}")

    @property
    def accuracy_target(self) -> float:
        """Accuracy that the suite ``accuracy`` aims at, in percent.

        Raises:
            ConfigError: If none is given, and the paper has none.
        """
        found = TARGETS.get(self.dataset) if self.target is None else self.target
        if found is None:
            raise ConfigError(f"--target: the paper has no accuracy on {self.dataset}; give one")
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return SHAPES[self.dataset][0]

    @property
    def classes(self) -> int:
        """Number of classes, m."""
        return SHAPES[self.dataset][1]

    @property
    def task(self) -> Task:
        """Description of the data for the networks."""
        channels = self.shape[0]
        normalization = Normalization((0.5,) * channels, (0.25,) * channels)
        return Task(self.shape, tuple(map(str, range(self.classes))), normalization)

    def race_steps(self, contestants: int) -> int:
        """Return the number of steps of a race: a warm-up and the rounds of each contestant."""
        return contestants * (1 + self.rounds)

    def config(self, method: str) -> RunConfig:
        """Return a method's recipe for this data set, on the CPU, with these lengths of chain."""
        recipe = find_recipe(f"{self.dataset}-{method}")
        if method in ("dt", "backprop"):
            length = {"method.num_blocks": self.blocks}
        else:
            length = {"method.steps": self.solver_steps if method == "adjoint" else self.steps}
        return replace(recipe, {"train.device": "cpu", "train.epochs": 1_000_000, **length})

    def data(self, count: int) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """Generate images and labels, the same for every call."""
        g = torch.Generator().manual_seed(0)
        x = torch.randint(256, (count, *self.shape), dtype=torch.uint8, generator=g)
        return x, torch.randint(self.classes, (count,), generator=g)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; the results of ``accuracy`` state its target themselves."""
        return {k: v for k, v in asdict(self).items() if k not in ("target", "data_dir")}
