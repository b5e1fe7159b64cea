"""The machine that a benchmark ran on, and how fast it multiplies and copies."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noprop.training.runs import commit_of_package
from noprop.training.workers import core_count

__all__ = ["copy_rate", "describe_machine", "product_rate"]


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions and commit: what a figure means nothing without."""
    return {
        "processor": _processor(),
        "cores": core_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit_of_package(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """The model's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return names.get("model name") or platform.processor() or platform.machine()


def _best_seconds(work: Callable[[], Any], seconds: float) -> float:
    """The least time of a call, of those that fit into ``seconds``."""
    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def product_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations a second (two for each multiply-add) of the best of three matrix products."""
    rates = []
    for rows, inner, columns in ((1024, 1024, 1024), (8192, 576, 128), (512, 256, 256)):
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
        taken = _best_seconds(lambda a=a, b=b: a @ b, seconds / 3)
        rates.append(2 * rows * inner * columns / taken)
    return max(rates)


def copy_rate(seconds: float = 0.5) -> float:
    """Bytes a second, read and written, of a copy of 64 MB: more than caches hold."""
    source = torch.ones(16_000_000)
    target = torch.empty_like(source)
    return (
        2
        * source.numel()
        * source.element_size()
        / _best_seconds(lambda: target.copy_(source), seconds)
    )
