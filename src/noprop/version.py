"""The version of the package, which checkpoints carry."""

__all__ = ["__version__"]

__version__ = "0.2.0"
