"""What is computed over batches of images: a stream without an end."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.data.inputs import Item
from vitrail.data.preprocess import Preprocess
from vitrail.data.stream import decoded
<<<<<<< HEAD
from vitrail.errors import ConfigError
=======
from vitrail.engines.torch_engine import TorchEngine
from vitrail.errors import check_counts
from vitrail.model.vit import ViT
>>>>>>> w-pages6


class Outputs(NamedTuple):
    """What was computed for consecutive images of a stream: a row for each that has no error."""

    items: list[Item]
    errors: list[str | None]
    values: Tensor  # on the CPU


def outputs(
    compute: Callable[[Tensor], Tensor],
    items: Iterable[Item],
    preprocess: Preprocess,
    device: torch.device,
    *,
    batch_size: int = 64,
    threads: int = 2,
) -> Iterator[Outputs]:
    """Give what `compute` makes of the uint8 pixels of every image, batch by batch, in order.

    Decoding goes on in threads while `compute` runs, three batches ahead at most, so that `items`
    may be longer than memory. A GPU is given its next batch before the last one is fetched.
    """
    check_counts(batch_size=batch_size, threads=threads)
    on_gpu = device.type == "cuda"
    ahead = decoded(items, preprocess, batch_size, threads=threads, pinned=on_gpu)
    running: deque[Outputs] = deque()
    for batch in ahead:
        values = compute(batch.images) if len(batch.images) else torch.empty(0)
        running.append(Outputs(batch.items, batch.errors, values))
        del batch, values  # or the memory of a batch would be held while the next is in the making
        if len(running) > on_gpu:
            yield _fetched(running.popleft())
    while running:
        yield _fetched(running.popleft())


def _fetched(found: Outputs) -> Outputs:
    return found._replace(values=found.values.cpu())
