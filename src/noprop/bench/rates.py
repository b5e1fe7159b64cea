"""How fast the machine of a benchmark multiplies and copies."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

from noprop.bench.contestants import Contestant
from noprop.machine import use_bf16

__all__ = ["copy_rate", "measure_rates", "product_kind", "product_rate"]


def measure_rates(workers: int, seconds: float = 0.5) -> dict[str, float]:
    """Return rates of products in float32 and bf16 (operations/s), and of copies (bytes/s).

    Each is the sum over ``workers`` processes of one thread that measure at the same time.
    """
    with closing(Contestant(_build_rates, *({"seconds": seconds} for _ in range(workers)))) as all_:
        all_.run(0)  # until every process has started
        _, answers = all_.run(1)
    return {name: sum(answer[name] for answer in answers) for name in answers[0]}


def _build_rates(seconds: float) -> Callable[[int], dict[str, float]]:
    torch.set_num_threads(1)

    def rates(units: int) -> dict[str, float]:
        if not units:
            return {}
        found = {"float32": product_rate(torch.float32, seconds), "copy": copy_rate(seconds)}
        if product_kind() == "bf16":
            found["bf16"] = product_rate(torch.bfloat16, seconds)
        return found

    return rates


def product_kind() -> str:
    """Return the number format in which training multiplies on this CPU by default."""
    return "bf16" if use_bf16("auto", torch.device("cpu")) else "float32"


def product_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Return operations per second (two for each multiply-add) of the best of three products."""
    rates = []
    for rows, inner, columns in ((1024, 1024, 1024), (8192, 576, 128), (512, 256, 256)):
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
        taken = _least_seconds(lambda a=a, b=b: a @ b, seconds / 3)
        rates.append(2 * rows * inner * columns / taken)
    return max(rates)


def copy_rate(seconds: float = 0.5) -> float:
    """Return bytes per second, read and written, of a copy of 64 MB: more than caches hold."""
    source = torch.ones(16_000_000)
    target = torch.empty_like(source)
    taken = _least_seconds(lambda: target.copy_(source), seconds)
    return 2 * source.numel() * source.element_size() / taken


def _least_seconds(work: Callable[[], Any], seconds: float) -> float:
    """Return the least time of a call, over the calls that fit into ``seconds``."""
    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
