"""The errors a user can cause. The command line prints them as one line, without a stack trace."""

__all__ = ["ConfigError", "DamagedError", "DataError", "NoPropError", "RunError", "TrainingError"]


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
