"""The engine for a job whose images are counted, and can be looked at, before it begins."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from vitrail.data.inputs import Item, opened
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import Source, path_of
from vitrail.data.stream import decoded
from vitrail.engines.automatic import SAMPLE, images_worth
from vitrail.engines.build import engine
from vitrail.engines.engine import Engine
from vitrail.engines.exported_files import Answering, ExportedFile
from vitrail.engines.torch_engine import pick_device
from vitrail.errors import DataError
from vitrail.weights.bundle import Bundle

_WORTH_A_SAMPLE = 20 * SAMPLE  # images: to answer for a sample twice is no tenth of all then


def engine_for_stream(
    bundle: Answering, items: Iterator[Item], name: str, dtype: str, **on: Any
) -> tuple[Engine, Iterator[Item]]:
    """Build the engine for a stream of files, and give the stream as it was.

    For `auto` the names of as many as decide are taken from it. `on` is as in `engine`.
    """
    if name != "auto" or isinstance(bundle, ExportedFile):
        return engine(bundle, name, dtype, **on), items
    ahead = list(islice(items, max(images_worth(bundle), _WORTH_A_SAMPLE)))
    return _engine_for(bundle, name, dtype, on, len(ahead), ahead), chain(ahead, items)


def engine_for_source(
    bundle: Answering, source: Source, looks: int, name: str, dtype: str, **on: Any
) -> Engine:
    """Build the engine for a source, each of whose images is answered for in so many `looks`."""
    if isinstance(bundle, ExportedFile):
        return engine(bundle, name, dtype, **on)
    items = [
        Item(path_of(source, i), partial(opened, source.read, i))
        for i in _spread(len(source), SAMPLE)
    ]
    return _engine_for(bundle, name, dtype, on, looks * len(source), items)


def _engine_for(
    bundle: Bundle,
    name: str,
    dtype: str,
    on: Mapping[str, Any],
    images: int,
    items: Sequence[Item],
) -> Engine:
    sample = None
    enough = images >= max(images_worth(bundle), _WORTH_A_SAMPLE)
    if name == dtype == "auto" and enough and pick_device(on["device"]).type == "cpu":
        sample = _pixels([items[i] for i in _spread(len(items), SAMPLE)], bundle.preprocess)
    return engine(bundle, name, dtype, images=images, sample=sample, **on)


def sampled(items: Sequence[Item], preprocess: Preprocess, size: int) -> Tensor:
    """Give so many images from all over a list, uint8 B C H W; fewer where some cannot be read.

    Raises `DataError` where none can.
    """
    chosen = [items[i] for i in _spread(len(items), size)]
    (batch,) = decoded(chosen, preprocess, batch_size=len(chosen))
    if not batch.stacks:
        raise DataError(f"no image can be read; the first is {chosen[0].name}: {batch.errors[0]}")
    return torch.cat([stack.images for stack in batch.stacks])


def _spread(count: int, size: int) -> list[int]:
    """Give places of a sample all over so many images: neighbours are often of one class."""
    size = min(count, size)
    return [count * i // size for i in range(size)]


def _pixels(items: list[Item], preprocess: Preprocess) -> Tensor:
    """Give the images that can be read, uint8 B C H W."""
    (batch,) = decoded(items, preprocess, batch_size=len(items))
    return torch.cat([torch.empty(0, dtype=torch.uint8), *(s.images for s in batch.stacks)])
