"""The one door to every engine: a bundle in, something that runs it out."""

from typing import Protocol

import torch
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.preprocess import Preprocess
from vitrail.engines.torch_engine import TorchEngine, pick_device
from vitrail.errors import ConfigError, nearest
from vitrail.weights.bundle import Bundle

ENGINES = ("torch",)


class Engine(Protocol):
    """What executes a model: `run` gives logits, B classes in float32, for images, B C H W.

    uint8 images are pixels as `Preprocess.pixels` gives them; others are normalised already.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def preprocess(self) -> Preprocess | OwnAspect: ...
    def run(self, images: Tensor) -> Tensor: ...


def engine(
    bundle: Bundle,
    name: str = "auto",
    dtype: str = "auto",
    *,
    device: str = "auto",
    merge: int = 0,
    aspect: bool = False,
) -> Engine:
    """Build the engine `name` for a bundle; `auto` is the fastest one that is here.

    `dtype` is float32, bfloat16 or float16; `auto` is bfloat16 on a GPU that multiplies it and
    float32 elsewhere. `merge` is how many patches each block merges into others, which is faster
    and less exact. With `aspect` its `preprocess` leaves every image its own aspect. Raises
    `ConfigError` for an engine, dtype or device that there is not.
    """
    if name not in ("auto", *ENGINES):
        raise ConfigError(
            f'there is no engine "{name}", but {", ".join(ENGINES)}.{nearest(name, ENGINES)}'
        )
    return torch_engine(bundle, dtype, device, merge, aspect)


def torch_engine(
    bundle: Bundle,
    dtype: str = "auto",
    device: str = "auto",
    merge: int = 0,
    aspect: bool = False,
) -> TorchEngine:
    """Build torch's engine, the one that gives tokens of any layer too."""
    where = pick_device(device)
    if dtype == "auto":
        fast = where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if fast else "float32"
    preprocess: Preprocess | OwnAspect = bundle.preprocess
    if aspect:
        preprocess = OwnAspect(plain=bundle.preprocess, patch=bundle.model.config.patch_size)
    return TorchEngine(bundle.model.to(where), preprocess, dtype, merge)
