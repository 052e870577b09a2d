"""Images without labels to batches: any number of them, decoded in threads, in their order."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.inputs import Item
from vitrail.data.preprocess import Preprocess
from vitrail.data.readers import Memory, Readers, Work
from vitrail.errors import DataError

_AHEAD = 2  # batches in the making while one is in use


class Decoded(NamedTuple):
    """Consecutive images: why each of them cannot be read, and the pixels of those that can."""

    items: list[Item]
    errors: list[str | None]
    images: Tensor  # uint8 G C H W, of those without an error


def decoded(
    items: Iterable[Item],
    preprocess: Preprocess,
    batch_size: int,
    *,
    threads: int = 2,
    timeout: float = 60.0,
    pinned: bool = False,
) -> Iterator[Decoded]:
    """Give the images in batches, two of which are in the making while one is in use.

    What is in memory already is resized as it comes, as its owner may change it; all else is read
    by `threads`. Raises `DataError` where a file does not answer within `timeout` seconds.
    """
    waiting, first = iter(items), 0
    held: dict[int, Item] = {}  # by place: the images of the batches in the making
    errors: dict[int, str] = {}
    shape = (preprocess.channels, *preprocess.size)
    memory = Memory(lambda: np.empty((batch_size, *shape), np.uint8))
    ahead: deque[tuple[Work, Tensor]] = deque()

    def fill(work: Work, row: int) -> None:
        place = int(work.places[row])
        try:
            preprocess.pixels(held[place].open(), out=work.rows[row])
        except DataError as error:
            errors[place] = str(error)
        except OSError as error:
            errors[place] = f"the file cannot be read: {error.strerror or error}"

    def begin(readers: Readers) -> int:
        """Take the images of a batch and have them read; gives how many there were."""
        if pinned:  # torch keeps such memory, and knows when a copy from it is over
            images = torch.empty(batch_size, *shape, dtype=torch.uint8, pin_memory=True)
        else:
            images = torch.from_numpy(memory.take())
        work = Work(np.arange(first, first + batch_size), images.numpy(), None)
        count, to_read = 0, []
        for row, item in enumerate(islice(waiting, batch_size)):
            held[first + row] = item
            count = row + 1
            if item.in_memory:
                fill(work, row)
            else:
                to_read.append(row)
        if count:
            work.places = work.places[:count]
            readers.submit(work, np.array(to_read, int))
            ahead.append((work, images[:count]))
        return count

    def finish(readers: Readers, work: Work, images: Tensor) -> Decoded:
        readers.wait(work)
        places = work.places.tolist()
        reasons = [errors.pop(place, None) for place in places]
        if any(reason is not None for reason in reasons):
            images = images[[row for row, reason in enumerate(reasons) if reason is None]]
        return Decoded([held.pop(place) for place in places], reasons, images)

    with Readers(threads, fill, lambda place: held[place].name, timeout) as readers:
        while count := begin(readers):
            first += count
            if len(ahead) > _AHEAD:
                yield finish(readers, *ahead.popleft())
        while ahead:
            yield finish(readers, *ahead.popleft())
