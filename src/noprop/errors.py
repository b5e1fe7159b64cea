"""The errors a user can cause. The command line prints them as one line, without a stack trace."""

import importlib
from typing import Any

__all__ = [
    "ConfigError",
    "DamagedError",
    "DataError",
    "NoPropError",
    "RunError",
    "TrainingError",
    "import_extra",
]

PACKAGES = {"PIL": "Pillow"}  # packages of another name than their module's


class NoPropError(Exception):
    """An error outside the program; the message names what is wrong and what was expected."""


class ConfigError(NoPropError):
    """A recipe, field or value that does not exist or is out of range."""


class DataError(NoPropError):
    """A data set or image that is missing, corrupt or not of the requested kind."""


class RunError(NoPropError):
    """A run folder or checkpoint that is missing, damaged, or of another architecture."""


class DamagedError(RunError):
    """A file of a run that is missing, or does not hold what was written."""


class TrainingError(NoPropError):
    """Training that cannot continue, for example because a loss is not finite."""


def import_extra(
    module: str, extra: str, subject: str, kind: type[NoPropError] = ConfigError
) -> Any:
    """Import a module that one of this package's extras brings.

    Args:
        module: Name of the module, such as ``matplotlib.figure``.
        extra: Name of the extra, such as ``plots``.
        subject: What needs it and the verb, such as ``plots need``.
        kind: Type of the error.

    Raises:
        NoPropError: Of that type, if it is not installed; the message names package and extra.
    """
    try:
        importlib.import_module(module.partition(".")[0])
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        package = PACKAGES.get(package, package)
        raise kind(f"{subject} {package}: pip install 'noprop[{extra}]'") from None
