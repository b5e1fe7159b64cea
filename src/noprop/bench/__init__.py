"""Benchmarks of ``noprop bench``: ours compared with a straightforward PyTorch loop and a bound.

Each suite is the constant ``SUITE`` of a file ``bench/<name>.py``. The names and their help texts
are here, because the parser reads them without importing torch.
"""

__all__ = ["DEFAULT_SUITES", "SUITES"]

SUITES = {
    "training": "a mini-batch of each method",
    "prediction": "images per second of each method",
    "scaling": "dt on 1, 2, 4, … workers",
    "memory": "peak memory of dt and backprop",
    "accuracy": "time to --target",
}
DEFAULT_SUITES = tuple(name for name in SUITES if name != "accuracy")
