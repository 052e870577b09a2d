"""Images without labels to batches: any number of them, decoded in threads, in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from vitrail.data.aspect import OwnAspect
from vitrail.data.inputs import Item
from vitrail.data.preprocess import Preprocess
from vitrail.data.readers import Memory, Readers, Work
from vitrail.data.stacks import OneShape, OwnShapes, Rows, Stack
from vitrail.errors import DataError

_AHEAD = 2  # batches in the making while one is in use
_WINDOW = 4  # batches' worth of images, among which those of one shape are put together


class Decoded(NamedTuple):
    """Consecutive images: why each of them cannot be read, and the pixels of those that can."""

    items: list[Item]
    errors: list[str | None]
    stacks: list[Stack]  # of those without an error


def decoded(
    items: Iterable[Item],
    preprocess: Preprocess | OwnAspect,
    batch_size: int,
    *,
    threads: int = 2,
    timeout: float = 60.0,
    pinned: bool = False,
) -> Iterator[Decoded]:
    """Give the images in batches, two of which are in the making while one is in use.

    What is in memory already is resized as it comes, as its owner may change it; all else is read
    by `threads`. A batch is one stack of `batch_size` images; of images at their own aspect, stacks
    of at most as many, of four times as many images. Raises `DataError` where a file does not
    answer within `timeout` seconds.
    """
    size = batch_size if isinstance(preprocess, Preprocess) else _WINDOW * batch_size
    new_rows = _maker(preprocess, batch_size, pinned)
    waiting, first = iter(items), 0
    held: dict[int, Item] = {}  # by place: the images of the batches in the making
    errors: dict[int, str] = {}
    ahead: deque[Work] = deque()

    def fill(work: Work, row: int) -> None:
        place = int(work.places[row])
        try:
            work.rows.put(row, held[place].open())
        except DataError as error:
            errors[place] = str(error)
        except OSError as error:
            errors[place] = f"the file cannot be read: {error.strerror or error}"

    def begin(readers: Readers) -> int:
        """Take the images of a batch and have them read; gives how many there were."""
        work = Work(np.arange(first, first + size), new_rows(), None)
        count, to_read = 0, []
        for row, item in enumerate(islice(waiting, size)):
            held[first + row] = item
            count = row + 1
            if item.in_memory:
                fill(work, row)
            else:
                to_read.append(row)
        if count:
            work.places = work.places[:count]
            readers.submit(work, np.array(to_read, int))
            ahead.append(work)
        return count

    def finish(readers: Readers, work: Work) -> Decoded:
        readers.wait(work)
        places = work.places.tolist()
        reasons = [errors.pop(place, None) for place in places]
        good = [row for row, reason in enumerate(reasons) if reason is None]
        return Decoded([held.pop(place) for place in places], reasons, work.rows.stacks(good))

    with Readers(threads, fill, lambda place: held[place].name, timeout) as readers:
        while count := begin(readers):
            first += count
            if len(ahead) > _AHEAD:
                yield finish(readers, ahead.popleft())
        while ahead:
            yield finish(readers, ahead.popleft())


def _maker(preprocess: Preprocess | OwnAspect, batch_size: int, pinned: bool) -> Callable[[], Rows]:
    """Give what makes the rows of a new batch."""
    if isinstance(preprocess, OwnAspect):
        return lambda: OwnShapes(preprocess, batch_size)
    shape = (batch_size, preprocess.channels, *preprocess.size)
    memory = Memory(lambda: np.empty(shape, np.uint8))

    def make() -> Rows:
        if pinned:  # torch keeps such memory, and knows when a copy from it is over
            return OneShape(preprocess, torch.empty(shape, dtype=torch.uint8, pin_memory=True))
        return OneShape(preprocess, torch.from_numpy(memory.take()))

    return make
