"""Cells of each table and figure: a cell is a recipe, trained once for every seed."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from noprop.config import RunConfig, replace
from noprop.data import SOURCES
from noprop.errors import ConfigError
from noprop.paper.numbers import DATASETS, EARLIER, EMBEDDINGS, METHODS, TABLE1, TABLE2
from noprop.paper.scale import Scale
from noprop.recipes import find_recipe

__all__ = ["EXPERIMENTS", "Cell", "all_cells", "select"]

# Fig. 7: embeddings of an image's dimension, by their initial value.
STARTS = {"random-image": "random", "orthogonal-image": "orthogonal"}
# The paper does not state the readout's initial value: every cell uses torch's default.
PAPER = {"method.readout_start": "random"}
# One thread per cell, so that weights do not depend on the machine, and several train at a time.
ALONE: dict[str, Any] = {"train.threads": 1, "train.workers": 1, "train.shards": 1}
# Methods of Fig. 4, and the number of points of a curve.
FOLLOWED = ("ct", "fm", "adjoint")
POINTS = 10


@dataclass(frozen=True)
class Cell:
    """One recipe of the paper.

    Attributes:
        dataset: Name in :data:`noprop.paper.numbers.DATASETS`.
        method: Name in ``METHODS`` or ``EARLIER``.
        embedding: Name in ``EMBEDDINGS``, or ``random-image`` or ``orthogonal-image``: learned, of
            an image's dimension.
        readout: ``softmax`` or ``radial``.
    """

    dataset: str
    method: str
    embedding: str
    readout: str = "softmax"

    @property
    def name(self) -> str:
        """Name of the recipe."""
        parts = [self.dataset, self.method]
        parts += [self.embedding] if self.embedding != "one-hot" else []
        parts += [self.readout] if self.readout != "softmax" else []
        return "-".join(parts)

    @property
    def words(self) -> tuple[str, ...]:
        """Words that select the cell in ``--only``."""
        return self.dataset, self.method, self.embedding, self.readout, self.name

    @property
    def recipe(self) -> RunConfig:
        """Recipe with the paper's settings."""
        if self.method in EARLIER:
            return find_recipe(self.name)
        if self.embedding not in STARTS:
            return replace(find_recipe(self.name), PAPER)
        # Prototypes have length 26. Embeddings of length 1 would differ from them mainly in their
        # ratio to the noise, so all have the prototypes' length.
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
        """Return the configuration at a scale, with a seed."""
        config = scale.applied(self.recipe, SOURCES[self.dataset].sizes[0])
        changes: dict[str, Any] = {**ALONE, "train.seed": seed, "evaluation.budget": "full"}
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

# Table 5 counts parameters and needs no training.
EXPERIMENTS: dict[str, list[Cell]] = {
    "table1": [Cell(d, m, e) for d in _THREE for (m, e), row in TABLE1.items() if d in row],
    "table2": _cells(TABLE2, ["tiny-imagenet"]),
    "table3": _cells(_ONE_HOT, _THREE),
    "table5": [],
    "fig3": [Cell("cifar10", "dt", "prototype")],
    "fig4": _cells([(method, "one-hot") for method in FOLLOWED], _THREE),
    "fig6": _cells([("dt", e) for e in EMBEDDINGS], _THREE, ("softmax", "radial")),
    "fig7": _cells([("dt", e) for e in (*STARTS, "prototype")], _THREE),
}


def all_cells(experiments: Iterable[str]) -> list[Cell]:
    """Return the cells of experiments, without duplicates."""
    return list(dict.fromkeys(cell for name in experiments for cell in EXPERIMENTS[name]))


def select(cells: Sequence[Cell], words: Sequence[str]) -> list[Cell]:
    """Return the cells that ``--only`` selects.

    Args:
        cells: Cells to select from.
        words: Data sets, methods, embeddings, readouts or names. A cell must match one of the words
            of each kind: ``mnist,cifar10,dt`` selects the cells of NoProp-DT on both data sets.

    Raises:
        ConfigError: If a word matches no cell, or no cell matches all kinds.
    """
    kinds: list[set[str]] = [set() for _ in range(5)]
    for word in words:
        places = {i for cell in cells for i, own in enumerate(cell.words) if own == word}
        if not places:
            known = list(dict.fromkeys(own for cell in cells for own in cell.words))
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            plain = (*DATASETS, *METHODS, *EARLIER, *EMBEDDINGS, *STARTS, "radial")
            short = [w for w in known if w in plain]
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(short)}"
            raise ConfigError(f"--only: no cell matches {word!r}; {hint}")
        # The name of a one-hot recipe equals no other word, so each word has one kind.
        kinds[min(places)].add(word)
    chosen = [
        cell
        for cell in cells
        if all(not kind or own in kind for kind, own in zip(kinds, cell.words, strict=True))
    ]
    if not chosen:
        raise ConfigError(f"--only: no cell matches all of {', '.join(words)}")
    return chosen
