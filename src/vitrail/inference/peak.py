"""What a device can do at most, measured: the rate of one large matrix product."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch

from vitrail.engines.packed import PackedLinear

_SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of square matrices
_LONG_ENOUGH = 0.01  # seconds of one product, beside which starting it costs nothing
_TIMED = 0.05  # seconds of products of one size, or three where they take longer


@cache
def matrix_rate(device: torch.device, dtype: str) -> float | None:
    """Give the most FLOP/s, two for each multiply-add, of torch's square product in `dtype`.

    On a CPU its packed form counts as well, which on AMD is the faster one. It takes a fraction of
    a second, once for each process, and draws from no generator of torch's. None where
    the device has no room or no kernel for it.
    """
    rates: list[float] = []
    with suppress(RuntimeError):  # torch's, of too little memory, or no such kernel
        for side in _SIDES:
            seconds = _fastest(side, device, getattr(torch, dtype))
            rates.append(2 * side**3 / seconds)
            if seconds > _LONG_ENOUGH:
                break
    return max(rates, default=None)


def wait(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _fastest(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Give the seconds of the fastest of several products of two square matrices."""
    # Not zeros: a GPU that multiplies what is easy to predict heats less, and runs faster.
    draws = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, side, side, generator=draws, device=device).to(dtype)
    fastest = _timed(lambda: torch.mm(a, b), device)
    if device.type == "cpu":
        with suppress(RuntimeError, AttributeError):  # no such operator in this torch, or dtype
            packed = PackedLinear(b, None, dtype)
            fastest = min(fastest, _timed(lambda: packed(a), device))
    return fastest


def _timed(product: Callable[[], object], device: torch.device) -> float:
    product()  # the first one chooses a kernel and takes new memory
    times: list[float] = []
    while len(times) < 3 or sum(times) < _TIMED:
        wait(device)
        began = time.perf_counter()
        product()
        wait(device)
        times.append(time.perf_counter() - began)
    return min(times)
