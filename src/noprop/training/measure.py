"""How much memory a process has used, and by which counter."""

import sys

import torch

__all__ = ["peak_memory", "reset_peak"]


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
