"""What is computed over batches of images: a stream without an end."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.inputs import Item
from vitrail.data.preprocess import Preprocess
from vitrail.data.stacks import Stack
from vitrail.data.stream import decoded
from vitrail.errors import check_counts


class Outputs(NamedTuple):
    """What was computed for consecutive images of a stream: a row for each that has no error."""

    items: list[Item]
    errors: list[str | None]
    values: Tensor  # on the CPU


def outputs(
    compute: Callable[[Tensor], Tensor],
    items: Iterable[Item],
    preprocess: Preprocess | OwnAspect,
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
        values = _computed(compute, batch.stacks)
        running.append(Outputs(batch.items, batch.errors, values))
        del batch, values  # or the memory of a batch would be held while the next is in the making
        if len(running) > on_gpu:
            yield _fetched(running.popleft())
    while running:
        yield _fetched(running.popleft())


def _computed(compute: Callable[[Tensor], Tensor], stacks: Sequence[Stack]) -> Tensor:
    """Give the rows of all stacks, in the order of their images."""
    if not stacks:
        return torch.empty(0)
    values = [compute(stack.images) for stack in stacks]
    if len(values) == 1:
        return values[0]
    places = torch.tensor([place for stack in stacks for place in stack.places])
    return torch.cat(values)[places.argsort().to(values[0].device)]


def _fetched(found: Outputs) -> Outputs:
    return found._replace(values=found.values.cpu())
