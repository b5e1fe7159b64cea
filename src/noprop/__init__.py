"""NoProp: training neural networks without back-propagating through them.

Equation, table, figure and algorithm numbers everywhere in this package are those of Li, Teh and
Pascanu, "NoProp: Training Neural Networks without Full Back-propagation or Full
Forward-propagation", arXiv:2503.24322.
"""

from typing import TYPE_CHECKING, Any

from noprop.version import __version__

if TYPE_CHECKING:
    from noprop.api import assemble, resume, train, train_together, train_units
    from noprop.config import RunConfig
    from noprop.errors import NoPropError
    from noprop.grid import train_grid
    from noprop.model import Model, load
    from noprop.recipes import RECIPES
    from noprop.run.ray_engine import RayEngine
    from noprop.run.run import Run
    from noprop.run.slurm_engine import SlurmEngine

__all__ = [
    "RECIPES",
    "Model",
    "NoPropError",
    "RayEngine",
    "Run",
    "RunConfig",
    "SlurmEngine",
    "__version__",
    "assemble",
    "load",
    "resume",
    "train",
    "train_grid",
    "train_together",
    "train_units",
]

_HOMES = {
    "RECIPES": "noprop.recipes",
    "Model": "noprop.model",
    "NoPropError": "noprop.errors",
    "RayEngine": "noprop.run.ray_engine",
    "Run": "noprop.run.run",
    "SlurmEngine": "noprop.run.slurm_engine",
    "RunConfig": "noprop.config",
    "assemble": "noprop.api",
    "load": "noprop.model",
    "resume": "noprop.api",
    "train": "noprop.api",
    "train_grid": "noprop.grid",
    "train_together": "noprop.api",
    "train_units": "noprop.api",
}


def __dir__() -> list[str]:
    """Return the public names, those included that no one has used yet."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: ``noprop --help`` must not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'noprop' has no attribute {name!r}")
