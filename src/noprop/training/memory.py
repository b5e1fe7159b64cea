"""How much memory a process has used, by which counter, and how to keep freed memory for reuse."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["freed_memory_kept", "peak_memory", "reset_peak"]


def reset_peak(device: torch.device) -> None:
    """Begin anew, where the counter can: on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> tuple[float, str]:
    """The peak so far, in MB, and the name of its counter.

    On CUDA what tensors took since :func:`reset_peak`; elsewhere the largest resident set of this
    process since it began, with the interpreter, the libraries and the data in it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, "CUDA, allocated"
    try:
        import resource
    except ImportError:  # Windows has no such counter
        return float("nan"), "not counted on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * unit / 1e6, "resident set of the process"


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEPT = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}
_DEFAULTS = {_MMAP_THRESHOLD: 128 << 10, _TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 0}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """In here glibc's malloc keeps the memory that tensors leave; afterwards it is handed back.

    Otherwise each activation's memory goes back to the system and comes again as zeroed pages: on
    MNIST's block a sixth of a training step (docs/speed.md). The peak is the same. Systems with
    another malloc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    for option, value in _KEPT.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
