"""What training asks of its process: threads, memory, the order of sums."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from vitrail.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> names them


@contextmanager
def undisturbed(threads: int | None) -> Iterator[None]:
    """Run with `threads` of the CPU, None as it is; threads and random numbers are put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Have the C library keep freed memory for the next tensor, where it can be told so (glibc).

    By itself it gives tensors back to the system, and each new one is cleared page by page again: 7
    to 9 % of the processor time of training a small ViT. At the end all of it is given back.
    """
    library = ctypes.CDLL(None)
    with suppress(AttributeError):  # another C library
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes; larger ones go back
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with suppress(AttributeError):
            library.mallopt(_M_TRIM_THRESHOLD, 64 << 20)  # where its own rule ends: twice the other
            library.malloc_trim(0)


@contextmanager
def repeatable(device: torch.device, wanted: bool) -> Iterator[None]:
    """Have a GPU add in the same order every time, so that a repeated run ends in equal weights.

    By itself attention's backward pass, among others, adds as its threads come. The CPU's kernels
    need no word. An operation that has no such kernel runs all the same, and torch warns of it.
    """
    if device.type != "cuda" or not wanted:
        yield
        return
    # cuBLAS reads it at its first product; a value that is there already is the user's.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # its setting is not in torch's own stubs
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it would write each tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory = fills


@contextmanager
def told_of_memory(images: int, device: torch.device) -> Iterator[None]:
    """Raise `ConfigError` with a way out where `images` at a time do not fit the memory."""
    try:
        yield
    except RuntimeError as error:
        on_cpu = "DefaultCPUAllocator" in str(error)  # which has no error of its own
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        less = f"--train.micro-batch {images // 2}, " if images > 1 else ""
        raise ConfigError(
            f"a step with {images} images at a time does not fit the memory of {device}; give "
            f"{less}--train.recompute or a smaller model, and --override to go on with this run"
        ) from error
