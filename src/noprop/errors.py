"""The errors a user can cause. The command line prints them as one line, without a stack trace."""

__all__ = ["ConfigError", "DataError", "NoPropError", "RunError", "TrainingError"]


class NoPropError(Exception):
    """Something outside the program is wrong; the message names it and says what was wanted."""


class ConfigError(NoPropError):
    """A recipe, field or value that does not exist or is out of range."""


class DataError(NoPropError):
    """A data set or image that is missing, corrupt or of another kind than asked for."""


class RunError(NoPropError):
    """A run folder or checkpoint that is none, is damaged, or of another architecture."""


class TrainingError(NoPropError):
    """Training cannot go on, for example because a loss is not finite."""
