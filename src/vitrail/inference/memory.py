"""How much memory a model takes: what this process has used at most since a moment."""

import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_SELF = Path("/proc/self")


def meter(device: torch.device) -> Callable[[], int | None]:
    """Begin to measure; what is given says by how many bytes this process has grown at most.

    On a GPU they are what tensors take of its memory. On a CPU it is the resident size over that of
    now; on macOS, which forgets no peak, over the largest before. None where a system tells
    nothing.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    if device.type == "mps":  # its driver keeps what it has once taken
        before = torch.mps.driver_allocated_memory()
        return lambda: torch.mps.driver_allocated_memory() - before
    if sys.platform == "darwin":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Not `ru_maxrss`: on Linux a process inherits that of the one which started it.
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        return lambda: max(_status("VmHWM") - before, 0)
    return lambda: None


def _status(name: str) -> int:
    lines = (_SELF / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
