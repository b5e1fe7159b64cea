"""The commands themselves, behind the parser: everything that needs torch."""

from noprop.commands.measuring import bench
from noprop.commands.reading import data, describe, evaluate, plot, predict
from noprop.commands.reproducing import reproduce
from noprop.commands.training import assemble, grid, train

__all__ = [
    "assemble",
    "bench",
    "data",
    "describe",
    "evaluate",
    "grid",
    "plot",
    "predict",
    "reproduce",
    "train",
]
