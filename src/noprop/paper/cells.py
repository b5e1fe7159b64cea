"""What is trained for each table and figure: a cell is a recipe, trained once for every seed."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from noprop.config import RunConfig, replace
from noprop.data import SOURCES
from noprop.errors import ConfigError
from noprop.paper.numbers import DATASETS, EMBEDDINGS, METHODS, TABLE1, TABLE2
from noprop.paper.scale import Scale
from noprop.recipes import find_recipe

__all__ = ["EXPERIMENTS", "Cell", "all_cells", "select"]

# Fig. 7: embeddings of an image's dimension, by what they start from.
STARTS = {"random-image": "random", "orthogonal-image": "orthogonal"}
# The paper says nothing of the readout's start: torch's default, in every cell.
PAPER = {"method.readout_start": "random"}
# One thread each, so that weights do not depend on the machine, and several train at a time.
ALONE = {"train.threads": 1, "train.workers": 1, "train.shards": 1}
# Fig. 4 follows these in time; so many points make a curve.
FOLLOWED = ("ct", "fm", "adjoint")
POINTS = 10


@dataclass(frozen=True)
class Cell:
    """One recipe of the paper.

    Attributes:
        dataset: a name of :data:`noprop.paper.numbers.DATASETS`.
        method: of ``METHODS``.
        embedding: of ``EMBEDDINGS``, or ``random-image`` and ``orthogonal-image``: learned, of an
            image's dimension.
        readout: ``softmax`` or ``radial``.
    """

    dataset: str
    method: str
    embedding: str
    readout: str = "softmax"

    @property
    def name(self) -> str:
        """Of its recipe."""
        parts = [self.dataset, self.method]
        parts += [self.embedding] if self.embedding != "one-hot" else []
        parts += [self.readout] if self.readout != "softmax" else []
        return "-".join(parts)

    @property
    def words(self) -> tuple[str, ...]:
        """By which it is chosen."""
        return self.dataset, self.method, self.embedding, self.readout, self.name

    @property
    def recipe(self) -> RunConfig:
        """With the paper's settings."""
        if self.embedding not in STARTS:
            return replace(find_recipe(self.name), PAPER)
        # At length 1 beside prototypes of length 26, the noise would tell the starts apart, not
        # what they are.
        changes: dict[str, Any] = {
            **PAPER,
            "method.embedding_norm": "prototype",
            "recipe": self.name,
            "method.embedding": STARTS[self.embedding],
            "method.dim": _pixels(self.dataset),
            "method.learned": True,
            "method.readout": self.readout,
        }
        return replace(find_recipe(f"{self.dataset}-{self.method}"), changes)

    def config(self, scale: Scale, seed: int) -> RunConfig:
        """As it is trained at a scale."""
        config = scale.applied(self.recipe, SOURCES[self.dataset].sizes[0])
        changes: dict[str, Any] = {**ALONE, "train.seed": seed}
        if self.method in FOLLOWED and self.embedding == "one-hot":
            changes["train.keep_every"] = max(1, config.train.epochs // POINTS)
        return replace(config, changes)


def _pixels(dataset: str) -> int:
    channels, height, width = SOURCES[dataset].shape
    return channels * height * width


def _cells(
    rows: Iterable[tuple[str, str]], datasets: Iterable[str], readouts: Sequence[str] = ("softmax",)
) -> list[Cell]:
    rows = list(rows)
    return [Cell(d, m, e, r) for d in datasets for m, e in rows for r in readouts]


_THREE = ("mnist", "cifar10", "cifar100")
_ONE_HOT = [(method, "one-hot") for method in METHODS]

# Table 5 counts parameters: nothing is trained for it.
EXPERIMENTS: dict[str, list[Cell]] = {
    "table1": _cells(TABLE1, _THREE),
    "table2": _cells(TABLE2, ["tiny-imagenet"]),
    "table3": _cells(_ONE_HOT, _THREE),
    "table5": [],
    "fig3": [Cell("cifar10", "dt", "prototype")],
    "fig4": _cells([(method, "one-hot") for method in FOLLOWED], _THREE),
    "fig6": _cells([("dt", e) for e in EMBEDDINGS], _THREE, ("softmax", "radial")),
    "fig7": _cells([("dt", e) for e in (*STARTS, "prototype")], _THREE),
}


def all_cells(experiments: Iterable[str]) -> list[Cell]:
    """The cells of some experiments, each once."""
    return list(dict.fromkeys(cell for name in experiments for cell in EXPERIMENTS[name]))


def select(cells: Sequence[Cell], words: Sequence[str]) -> list[Cell]:
    """The cells that ``--only`` leaves.

    Args:
        cells: to choose from.
        words: data sets, methods, embeddings, readouts or names. Words of one kind add up, kinds
            narrow: ``mnist,cifar10,dt`` are NoProp-DT's cells of both.

    Raises:
        ConfigError: If a word fits no cell, or all together fit none.
    """
    kinds: list[set[str]] = [set() for _ in range(5)]
    for word in words:
        places = {i for cell in cells for i, own in enumerate(cell.words) if own == word}
        if not places:
            known = list(dict.fromkeys(own for cell in cells for own in cell.words))
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            short = [w for w in known if w in (*DATASETS, *METHODS, *EMBEDDINGS, *STARTS, "radial")]
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(short)}"
            raise ConfigError(f"--only: no cell here is of {word!r}; {hint}")
        # The name of a one-hot recipe is no other word's, so a word has one kind.
        kinds[min(places)].add(word)
    chosen = [
        cell
        for cell in cells
        if all(not kind or own in kind for kind, own in zip(kinds, cell.words, strict=True))
    ]
    if not chosen:
        raise ConfigError(f"--only: no cell is all of {', '.join(words)}")
    return chosen
