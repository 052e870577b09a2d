"""What `bench` measures: engines, dtypes and batch sizes, and the images that they answer for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.engines.names import DTYPES, ENGINES, is_installed
from vitrail.model.shapes import summary
from vitrail.weights.bundle import Bundle

BATCHES = (1, 8, 64)
# Multiply-adds on each thread of a CPU: of the largest batch that nobody asked for, about four
# seconds, and of a sample, about ten.
_BATCH, _SAMPLE = 2e11, 5e11


class Setting(NamedTuple):
    """What a row is measured with."""

    engine: str
    dtype: str
    batch: int

    def __str__(self) -> str:
        return f"{self.engine}, {self.dtype}, batch {self.batch:,}"


def settings(
    bundle: Bundle,
    device: torch.device,
    engines: Sequence[str] = ("auto",),
    dtypes: Sequence[str] = ("auto",),
    batches: Sequence[int] | None = None,
) -> list[Setting]:
    """Give all that is to be measured, smaller batches first.

    `auto` stands for what is installed and for what the processor computes in. Without `batches`
    they are 1, 8 and 64, on a CPU as far as one takes seconds.
    """
    if "auto" in engines:
        here = ENGINES if device.type == "cpu" else ("torch",)
        engines = [name for name in here if is_installed(name)]
    if "auto" in dtypes:
        dtypes = _fast_dtypes(device)
    if batches is None:
        most = _BATCH * torch.get_num_threads() / macs(bundle)
        batches = [size for size in BATCHES if size == 1 or device.type != "cpu" or size <= most]
    return [
        Setting(name, dtype, batch)
        for batch in sorted(set(batches))
        for name in dict.fromkeys(engines)
        for dtype in dict.fromkeys(dtypes)
        if dtype in DTYPES[name]
    ]


def sample_size(bundle: Bundle, device: torch.device, most: int) -> int:
    """Give how many images engines are compared on: fewer for a large model on a CPU."""
    if device.type != "cpu":
        return most
    return max(16, min(most, int(_SAMPLE * torch.get_num_threads() / macs(bundle))))


def noise(bundle: Bundle, size: int) -> Tensor:
    """Give so many images that show nothing, uint8 B C H W."""
    shape = (size, bundle.preprocess.channels, *bundle.preprocess.size)
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)


def macs(bundle: Bundle) -> int:
    """Give the multiply-adds that an engine takes for an image."""
    size = (bundle.preprocess.channels, *bundle.preprocess.size)
    return summary(bundle.model, size, logits_alone=True).macs


def _fast_dtypes(device: torch.device) -> tuple[str, ...]:
    """Give the dtypes that the device computes in, and does not only emulate."""
    if device.type == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("float32", *(["bfloat16"] if half else []), "float16")
    if device.type == "mps":
        return ("float32", "float16")
    half = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return ("float32", "bfloat16") if half else ("float32",)
