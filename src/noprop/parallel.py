"""Independent pieces of work beside each other, on threads that compute with one thread each."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from noprop.memory import freed_memory_kept

__all__ = ["side_by_side"]

_alone = threading.Lock()
Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    device: torch.device,
    *,
    apart: bool = False,
) -> list[Result]:
    """``[function(item) for item in items]``, on a CPU with as many at a time as torch has threads.

    A chain's products are small: two threads that share each of them wait for one another longer
    than two that have a batch each. A result does not depend on the number of threads, except for a
    lone item's: that is computed with all of them.

    Args:
        function: of an item.
        items: what it is called with.
        device: of its tensors.
        apart: never at the same time, for a function that calls a user's own code.
    """
    if device.type != "cpu":
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    with freed_memory_kept():
        # The number of threads is the process's: a second caller at the same time goes without.
        if apart or threads == 1 or len(items) < 2 or not _alone.acquire(blocking=False):
            return [function(item) for item in items]
        torch.set_num_threads(1)  # of every thread that begins after this
        try:
            with ThreadPoolExecutor(min(threads, len(items))) as pool:
                return list(pool.map(function, items))
        finally:
            torch.set_num_threads(threads)
            _alone.release()
