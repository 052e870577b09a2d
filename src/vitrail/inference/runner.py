"""A model over batches of images: device, precision, and logits out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError
from vitrail.model.vit import ViT


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


def precision(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Give the context in which the arithmetic runs in `dtype`: float32, bfloat16 or float16."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in ("float32", *half):
        raise ConfigError(f'dtype is "{dtype}"; it should be float32, bfloat16 or float16')
    return torch.autocast(device.type, dtype=half[dtype]) if dtype in half else nullcontext()


def logits(
    model: ViT, preprocess: Preprocess, loader: Loader, dtype: str = "float32"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the logits, B classes in float32, and labels, B, of every sample in the source's order.

    Both are on the CPU; a file that cannot be read is not among them but in `loader.bad`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader.once():
            if not len(batch.labels):
                continue
            images = preprocess.normalize(batch.images.to(device, non_blocking=True))
            with precision(device, dtype):
                out = model(images)
            yield out.float().cpu(), batch.labels
    model.train(was_training)
