"""torch as an engine: the model itself, layer by layer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.preprocess import Preprocess
from vitrail.engines.packed import packed
from vitrail.errors import ConfigError, NonFiniteError
from vitrail.model.checks import check_merge
from vitrail.model.merging import merged_tokens
from vitrail.model.vit import Tokens, ViT


class TorchEngine:
    """A model where its weights are; `dtype` is the precision of its arithmetic.

    On a CPU it runs in its packed form where there is one (`packed.py`), which rounds its last bits
    otherwise; with `packs` off it is the model itself, bit for bit. bfloat16 is that of the
    weights too, and else autocast's. With `keeps` off the packed form takes the model's matrices,
    so that none is held twice, and the model cannot run any more. Each block merges `merge` patches
    away, which makes it faster and less exact (`merging`).
    """

    name, reason = "torch", ""

    def __init__(
        self,
        model: ViT,
        preprocess: Preprocess | OwnAspect,
        dtype: str = "float32",
        merge: int = 0,
        *,
        packs: bool = True,
        keeps: bool = True,
    ) -> None:
        check_merge(merge)
        self.preprocess, self.dtype, self.merge = preprocess, dtype, merge
        self.device = next(model.parameters()).device
        precision(self.device, dtype)  # refuses a wrong one now
        model.eval()
        twin = None
        if packs and self.device.type == "cpu" and dtype != "float16":
            plain = preprocess.plain if isinstance(preprocess, OwnAspect) else preprocess
            twin = packed(model, plain, getattr(torch, dtype), takes=not keeps)
        self.is_packed, self.model = twin is not None, twin or model
        self._logits = self.model.logits_alone if packs else self.model

    def run(self, images: Tensor) -> Tensor:
        """Give the logits, B classes, of images, B C H W, in float32 on the engine's device.

        uint8 images are pixels as `Preprocess.pixels` gives them; others are normalised already.
        """
        return self.apply(self._merged_logits if self.merge else self._logits, images)

    def tokens(self, images: Tensor, layer: int | None = None) -> Tokens:
        """Give the tokens of the model's input, B C H W, after a block, the last by default."""
        if self.merge:
            return merged_tokens(self.model, images, self.merge, layer)
        if layer is None:
            return self.model.tokens(images)
        return self.model.tokens(images, [layer])[0]

    def apply(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Give what `compute` makes of the model's input, B C H W, as `run` would run it."""
        images = images.to(self.device, non_blocking=True)
        with torch.inference_mode():
            if self.is_packed:
                return compute(images).float()
            if images.dtype == torch.uint8:
                images = self.preprocess.normalize(images)
            with precision(self.device, self.dtype):
                return compute(images).float()

    def _merged_logits(self, images: Tensor) -> Tensor:
        return self.model.logits(self.tokens(images))


def check_finite(values: Tensor) -> None:
    """Raise `NonFiniteError` where a model gives what is no number: nothing can be said of it."""
    if not values.isfinite().all():
        raise NonFiniteError(
            "the model's answers are not finite numbers: its weights are broken, or too large for "
            "float16"
        )


def pick_device(name: str = "auto") -> torch.device:
    """Give the device called `name`; `auto` is CUDA, else MPS, else the CPU.

    Raises `ConfigError` for a device that this machine does not have.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in here.items() if there))
    if not here.get(name, False):
        found = ", ".join(device for device, there in here.items() if there)
        raise ConfigError(
            f'there is no device "{name}" here, but {found}; `vitrail doctor` says more'
        )
    return torch.device(name)


def precision(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Give the context in which the arithmetic runs in `dtype`: float32, bfloat16 or float16."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in ("float32", *half):
        raise ConfigError(f'dtype is "{dtype}"; it should be float32, bfloat16 or float16')
    return torch.autocast(device.type, dtype=half[dtype]) if dtype in half else nullcontext()
