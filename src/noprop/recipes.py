"""Recipes: named configurations, among them the paper's (Table 4)."""

import difflib
from dataclasses import replace

from noprop.config import DataConfig, DTConfig, RunConfig, TrainConfig
from noprop.errors import ConfigError

__all__ = ["RECIPES", "find_recipe"]


def _paper(name: str, dataset: str, epochs: int, method: DTConfig | None = None) -> RunConfig:
    """The paper's: T = 10, η = 0.1, AdamW at 1e-3 with weight decay 1e-3, batches of 128."""
    return RunConfig(
        recipe=name,
        data=DataConfig(dataset=dataset),
        method=method or DTConfig(),
        train=TrainConfig(epochs=epochs),
    )


D20 = DTConfig(embedding="orthogonal", dim=20, learned=True)
PROTOTYPE = DTConfig(embedding="prototype", learned=True)


def _family(dataset: str, epochs: int) -> list[RunConfig]:
    return [
        _paper(f"{dataset}-dt", dataset, epochs),
        _paper(f"{dataset}-dt-d20", dataset, epochs, D20),
        _paper(f"{dataset}-dt-prototype", dataset, epochs, PROTOTYPE),
        _paper(f"{dataset}-dt-radial", dataset, epochs, replace(DTConfig(), readout="radial")),
    ]


_ALL = [
    # Not of the paper: small enough to train while one waits.
    _paper("digits-dt", "digits", 10),
    *_family("mnist", 100),
    *_family("fashion-mnist", 100),
    *_family("cifar10", 150),
    *_family("cifar100", 150),
    *_family("tiny-imagenet", 150),
]

RECIPES: dict[str, RunConfig] = {config.recipe: config for config in _ALL}


def find_recipe(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        ConfigError: If there is none; the message names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown recipe {name!r}{hint} Known are {', '.join(RECIPES)}.")
