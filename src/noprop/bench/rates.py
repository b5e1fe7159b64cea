"""How fast the machine of a benchmark multiplies and copies."""

import time
from collections.abc import Callable
from typing import Any

import torch

from noprop.bench.contestants import Contestant
from noprop.build import use_bf16

__all__ = [
    "copy_rate",
    "measure_rates",
    "product_kind",
    "product_rate",
]


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
    taken = _best_seconds(lambda: target.copy_(source), seconds)
    return 2 * source.numel() * source.element_size() / taken


def measure_rates(workers: int, seconds: float = 0.5) -> dict[str, float]:
    """Products (operations a second) in float32 and bf16, and copies (bytes a second).

    Of ``workers`` processes of one thread that all measure at the same time, added up.
    """
    contestant = Contestant(_build_rates, *({"seconds": seconds} for _ in range(workers)))
    try:
        contestant.run(0)  # all are up
        _, answers = contestant.run(1)
    finally:
        contestant.close()
    return {name: sum(answer[name] for answer in answers) for name in answers[0]}


def _build_rates(settings: dict[str, Any]) -> Callable[[int], dict[str, float]]:
    torch.set_num_threads(1)
    seconds = settings["seconds"]

    def rates(units: int) -> dict[str, float]:
        if not units:
            return {}
        found = {"float32": product_rate(torch.float32, seconds), "copy": copy_rate(seconds)}
        has_bf16 = use_bf16("auto", torch.device("cpu"))
        return found | ({"bf16": product_rate(torch.bfloat16, seconds)} if has_bf16 else {})

    return rates


def product_kind() -> str:
    """In which numbers training multiplies on this CPU unless told otherwise."""
    return "bf16" if use_bf16("auto", torch.device("cpu")) else "float32"
