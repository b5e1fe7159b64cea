"""The machine of this process: its device, cores, threads, memory, processor and commit."""

import ctypes
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from noprop.errors import ConfigError

__all__ = [
    "choose_device",
    "use_bf16",
    "core_count",
    "threads_per_process",
    "map_in_threads",
    "malloc_keeps_memory",
    "reset_peak",
    "peak_memory",
    "processor_name",
    "commit_of_package",
    "describe_machine",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

# -- the device ------------------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"train.device: {name} is none of auto, cpu, cuda, cuda:N and mps")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device: {name} cannot be used here: {reason}") from None
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether convolutions and products run in bf16; ``auto`` if the device supports it.

    On a CPU without support bf16 is emulated, and several times slower than float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


# -- cores and threads -----------------------------------------------------------------------------


def core_count() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def threads_per_process(processes: int) -> int:
    """Divide this process's torch threads among a number of processes, at least one for each."""
    return max(1, torch.get_num_threads() // max(1, processes))


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    device: torch.device,
    *,
    one_at_a_time: bool = False,
) -> list[Result]:
    """Return ``[function(item) for item in items]``, on a CPU computed by a pool of threads.

    The pool has as many threads as torch, and each of them computes with one thread. The matrix
    products of a chain are small, so two threads that share each product are slower than two
    threads with a batch each. Results do not depend on the number of threads, unless there is a
    single item, which is computed with all threads.

    Args:
        function: Function of one item.
        items: Arguments of the calls.
        device: Device of the function's tensors.
        one_at_a_time: Whether calls must not overlap, as for functions that run a user's code.
    """
    if device.type != "cpu":
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    with malloc_keeps_memory():
        # The thread count is that of the process: a second caller at the same time gets no pool.
        plain = one_at_a_time or threads == 1 or len(items) < 2
        if plain or not _pool_lock.acquire(blocking=False):
            return [function(item) for item in items]
        torch.set_num_threads(1)  # for every thread that starts after this
        try:
            with ThreadPoolExecutor(min(threads, len(items))) as pool:
                return list(pool.map(function, items))
        finally:
            torch.set_num_threads(threads)
            _pool_lock.release()


_pool_lock = threading.Lock()

# -- memory ----------------------------------------------------------------------------------------

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_KEEPING = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}
# glibc stops adapting a threshold once it is set. So these are the values that its own rule reaches
# after large tensors were freed; its small defaults would be worse than the state before.
_AFTERWARDS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}

_malloc_lock = threading.Lock()
_malloc_users = 0


@contextmanager
def malloc_keeps_memory() -> Iterator[None]:
    """Let glibc's malloc keep freed memory for reuse in this block, and return it afterwards.

    Otherwise the memory of each activation goes back to the system and returns as zeroed pages: on
    MNIST's block this is a sixth of a training step (docs/speed.md). The peak is the same. Nothing
    changes with another malloc, or if the user's environment sets thresholds. Blocks may overlap:
    the last one to end returns the memory.
    """
    global _malloc_users
    libc = _glibc()
    if libc is None:
        yield
        return
    with _malloc_lock:
        _malloc_users += 1
        if _malloc_users == 1:
            for option, value in _KEEPING.items():
                libc.mallopt(option, value)
    try:
        yield
    finally:
        with _malloc_lock:
            _malloc_users -= 1
            if _malloc_users == 0:
                for option, value in _AFTERWARDS.items():
                    libc.mallopt(option, value)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc and the user has not set its thresholds."""
    own = any(n.startswith("MALLOC_") and n.endswith("_THRESHOLD_") for n in os.environ)
    own = own or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def reset_peak(device: torch.device) -> None:
    """Reset the counter of :func:`peak_memory` to the memory in use, on CUDA and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # some containers refuse it
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: torch.device) -> tuple[float, str]:
    """Return the peak memory in MB, and the name of its counter.

    On CUDA this is the memory of tensors since :func:`reset_peak`. Elsewhere it is the largest
    resident set of this process, including interpreter, libraries and data: on Linux since
    :func:`reset_peak`, or else since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, "CUDA, allocated"
    # On Linux ru_maxrss starts with the peak of the parent process, VmHWM does not.
    high_water = _fields(Path("/proc/self/status")).get("VmHWM")
    if high_water is not None:
        return int(high_water.split()[0]) * 1024 / 1e6, "resident set of the process"
    try:
        import resource
    except ImportError:  # Windows has no such counter
        return float("nan"), "not counted on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * unit / 1e6, "resident set of the process"


def _fields(file: Path) -> dict[str, str]:
    """Read the lines ``name: value`` of a system file; empty if the file does not exist."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}


# -- description -----------------------------------------------------------------------------------


def processor_name() -> str:
    """Return the name of the processor's model, where the system knows it."""
    model = _fields(Path("/proc/cpuinfo")).get("model name")
    return model or platform.processor() or platform.machine()


def commit_of_package(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the package's own checkout, with ``-dirty`` if a tracked file changed.

    None if git does not track ``file``: the repository that contains an installed copy, such as a
    user's own, is not that of the package.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, system, versions, commit and date, as stored with measurements."""
    return {
        "processor": processor_name(),
        "cores": core_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit_of_package(),
        "date": time.strftime("%Y-%m-%d"),
    }
