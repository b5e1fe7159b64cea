"""How much memory a process has used, by which counter, and how to keep freed memory for reuse."""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with the peak of the process that started us
        lines = dict(
            line.split(":", 1)
            for line in status.read_text(encoding="utf-8").splitlines()
            if ":" in line
        )
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024 / 1e6, "resident set of the process"
    try:
        import resource
    except ImportError:  # Windows has no such counter
        return float("nan"), "not counted on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * unit / 1e6, "resident set of the process"


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEPT = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}
# Where malloc's own rule ends in a process that has freed large tensors: once a threshold is set,
# glibc adapts it no more, so that its small defaults would be worse than what was there before.
_AFTERWARDS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """In here glibc's malloc keeps the memory that tensors leave; afterwards it is handed back.

    Otherwise each activation's memory goes back to the system and comes again as zeroed pages: on
    MNIST's block a sixth of a training step (docs/speed.md). The peak is the same. Systems with
    another malloc, or with thresholds of the user's own in the environment, are left as they are.
    Of those that overlap the last to end hands back.
    """
    global _holders
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _holders += 1
        if _holders == 1:
            for option, value in _KEPT.items():
                libc.mallopt(option, value)
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                for option, value in _AFTERWARDS.items():
                    libc.mallopt(option, value)
                libc.malloc_trim(0)


_lock = threading.Lock()
_holders = 0


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and the user has not set its thresholds."""
    own = any(n.startswith("MALLOC_") and n.endswith("_THRESHOLD_") for n in os.environ)
    own = own or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
