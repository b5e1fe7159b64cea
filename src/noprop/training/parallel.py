"""Independent pieces of work beside each other, on threads that compute with one thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from noprop.training.memory import freed_memory_kept

__all__ = ["side_by_side"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """``[function(item) for item in items]``, on a CPU with as many at a time as torch has threads.

    A chain's products are small: two threads that share each of them wait for one another longer
    than two that have a batch each. A result does not depend on the number of threads, except for a
    lone item's: that is computed with all of them.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        return [function(item) for item in items]
    with freed_memory_kept():
        if threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        torch.set_num_threads(1)  # of every thread that begins after this
        try:
            with ThreadPoolExecutor(min(threads, len(items))) as pool:
                return list(pool.map(function, items))
        finally:
            torch.set_num_threads(threads)
