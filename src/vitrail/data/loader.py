"""Sources to batches: decoded in threads, in an order that only (seed, epoch) decides."""

from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.config import Augment, check_batch
from vitrail.data.crop import draw_crops, random_crop
from vitrail.data.decode import open_image
from vitrail.data.draws import grouped_order, order, repeated
from vitrail.data.layout import Layout
from vitrail.data.listing import Images
from vitrail.data.preprocess import Preprocess, sides
from vitrail.data.readers import Memory, Readers, Work
from vitrail.data.sources import BadFile, Source, path_of
from vitrail.errors import ConfigError, DataError

KEPT_BYTES = 512 * 2**20  # decoded images up to this size stay in memory: MNIST and CIFAR do
_AHEAD = 2  # batches in the making while one is in use


class Batch(NamedTuple):
    """Images uint8 B C H W, labels B, and where in the source and the epoch they come from."""

    images: Tensor
    labels: Tensor
    places: np.ndarray  # B: the samples' places in their source
    keys: np.ndarray  # B: what is drawn for a sample is drawn from (seed, epoch, key)
    blocks: np.ndarray  # B: the block of the epoch in which a sample is mixed with another
    epoch: int


class Part(NamedTuple):
    """The samples of a batch, as in `Batch`, before any of them was read."""

    places: np.ndarray
    keys: np.ndarray
    blocks: np.ndarray
    epoch: int
    crops: np.ndarray | None = None


class Loader:
    """Batches of a source. A file that cannot be read is left out of them and listed in `bad`.

    `batch_size` is that of all `ranks` together, of which this one, `rank`, reads its share. Images
    that lie together on slow storage are shuffled near each other (`shuffle = "grouped"`), others
    as a whole; `auto` asks the source. `pinned` batches move to a GPU while it computes.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        batch_size: int,
        *,
        threads: int = 2,
        timeout: float = 60.0,
        max_bad_share: float = 0.01,
        decode: Literal["exact", "fast"] = "exact",
        shuffle: Literal["auto", "whole", "grouped"] = "auto",
        augment: Augment = Augment(),
        rank: int = 0,
        ranks: int = 1,
        pinned: bool = False,
    ) -> None:
        check_batch(batch_size, ranks, augment)
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.threads, self.timeout, self.max_bad_share = threads, timeout, max_bad_share
        self.fast, self.augment = decode == "fast", augment
        self.rank, self.ranks, self.pinned = rank, ranks, pinned
        self.groups = _groups(source, shuffle)
        self.labels = _labels(source)
        self.bad: dict[int, BadFile] = {}
        self.sides = np.zeros((len(source), 2), np.int32)  # height and width of what was read
        self.shape = (preprocess.channels, *preprocess.size)
        crops = augment.crop_scale is not None  # anew in every epoch
        keep = not crops and len(source) * int(np.prod(self.shape)) <= KEPT_BYTES
        self.kept = np.empty((len(source), *self.shape), np.uint8) if keep else None
        self.decoded = np.zeros(len(source), bool)  # which rows of `kept` are filled
        share = batch_size // ranks
        self.memory = Memory(lambda: np.empty((share, *self.shape), np.uint8))

    def steps(self) -> int:
        """Whole batches in a training epoch."""
        return self._epoch_images // self.batch_size

    def check_steps(self) -> None:
        """Raise `DataError` where an epoch has fewer images than a batch."""
        if self.steps():
            return
        given, count = f"the {len(self.source)} training images", self._epoch_images
        if (repeats := self.augment.repeats) > 1:
            given = f"the {count} images of an epoch (augment.repeats {repeats} times each, of "
            given += f"{len(self.source)} training images)"
        how = f"give --batch-size {count} or less" if count else "set augment.repeats to 1"
        raise DataError(
            f"batch_size {self.batch_size} is more than {given}, so that no step can be "
            f"taken; {how}"
        )

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Give the whole batches of a shuffled epoch, from batch `start` on, randomly cropped."""
        steps = self.steps()
        return self.batches(seed, epoch * steps + start, (epoch + 1) * steps)

    def batches(self, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """Give the batches of the training steps from `start` to before `stop`.

        Step s is batch s % steps() of epoch s // steps(); an epoch's first batches are in the
        making while the last of the one before are in use.
        """
        return self._read(self.parts(seed, start, stop))

    def once(self) -> Iterator[Batch]:
        """Give every sample once, in the source's own order; the last batch may be smaller.

        Each rank gives its share of them: together, in the order of ranks, they are all.
        """
        own = self.own()
        share = self.batch_size // self.ranks
        parts = (own[i : i + share] for i in range(0, len(own), share))
        return self._read(Part(part, part, np.zeros_like(part), 0) for part in parts)

    def own(self) -> np.ndarray:
        """Give the places in the source that `once` reads, in this order."""
        return np.array_split(np.arange(len(self.source)), self.ranks)[self.rank]

    @cached_property
    def _epoch_images(self) -> int:
        return len(self._order(0, 0)[0])

    def _order(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Give the places of an epoch, and the keys of what is drawn for them."""
        length = len(self.source)
        if self.groups is None:
            places = order(seed, epoch, length)
        else:
            places = grouped_order(seed, epoch, self.groups.groups, self.groups.window)
        if self.augment.repeats == 1:
            return places, places
        places, copies = repeated(places, self.augment.repeats, self.augment.mix_block)
        return places, places + length * copies

    def parts(self, seed: int, start: int, stop: int) -> Iterator[Part]:
        """Say which samples are in the batches of `batches`, without reading any."""
        steps, size, block = self.steps(), self.batch_size, self.augment.mix_block
        share = size // self.ranks
        blocks = np.arange(size) // block
        if size % block == 1 and size > 1:  # alone it would find no partner
            blocks[-1] = blocks[-2]
        own = slice(self.rank * share, (self.rank + 1) * share)
        epoch, places, keys = -1, np.empty(0), np.empty(0)
        for step in range(start, stop):
            if step // steps != epoch:
                epoch = step // steps
                places, keys = self._order(seed, epoch)
            number = step % steps
            rows = slice(number * size + own.start, number * size + own.stop)
            crops = None
            if self.augment.crop_scale is not None:
                crops = draw_crops(seed, epoch, keys[rows])
            first = number * -(-size // block)
            yield Part(places[rows], keys[rows], first + blocks[own], epoch, crops)

    def _read(self, parts: Iterator[Part]) -> Iterator[Batch]:
        """Decode two batches ahead of the one in use."""
        ahead: deque[tuple[Part, Tensor, Work]] = deque()
        with Readers(self.threads, self._decode, self._path, self.timeout) as readers:
            for part in parts:
                ahead.append(self._begin(readers, part))
                if len(ahead) > _AHEAD:
                    yield self._finish(readers, *ahead.popleft())
            while ahead:
                yield self._finish(readers, *ahead.popleft())

    def _begin(self, readers: Readers, part: Part) -> tuple[Part, Tensor, Work]:
        if self.pinned:  # torch keeps such memory, and knows when a copy from it is over
            images = torch.empty(len(part.places), *self.shape, dtype=torch.uint8, pin_memory=True)
        else:
            images = torch.from_numpy(self.memory.take())[: len(part.places)]
        work = Work(part.places, images.numpy(), part.crops)
        waiting = np.arange(len(part.places))
        if self.kept is not None:
            ready = self.decoded[part.places]
            work.rows[ready] = self.kept[part.places[ready]]
            waiting = waiting[~ready]
        readers.submit(work, waiting)
        return part, images, work

    def _decode(self, work: Work, row: int) -> None:
        """Read one sample of a batch straight into its row."""
        index = int(work.places[row])
        if index in self.bad:
            return
        try:
            self._fill(work.rows[row], index, None if work.draws is None else work.draws[row])
        except (DataError, OSError) as error:
            self.bad[index] = BadFile(self._path(index), str(error))
            return
        if self.kept is not None:
            self.kept[index] = work.rows[row]
            self.decoded[index] = True

    def _path(self, index: int) -> str:
        return path_of(self.source, index)

    def _fill(self, row: np.ndarray, index: int, draws: np.ndarray | None) -> None:
        image = open_image(self.source.read(index))
        self.sides[index] = sides(image)
        how = self.augment
        if draws is None or how.crop_scale is None:
            self.preprocess.pixels(image, fast=self.fast, out=row)
            return
        crop = random_crop(
            *sides(image), draws, scale=how.crop_scale, ratio=how.crop_ratio, flip=how.flip
        )
        self.preprocess.cropped(image, crop, fast=self.fast, out=row)

    def _finish(self, readers: Readers, part: Part, images: Tensor, work: Work) -> Batch:
        readers.wait(work)
        self.check_bad()
        places, keys, blocks = part.places, part.keys, part.blocks
        if self.bad:
            good = np.array([i not in self.bad for i in places.tolist()])
            if not good.all():
                images = images[torch.from_numpy(good)]
                places, keys, blocks = places[good], keys[good], blocks[good]
        labels = torch.from_numpy(self.labels[places])
        return Batch(images, labels, places, keys, blocks, part.epoch)

    def check_bad(self) -> None:
        """Raise `DataError` where more files than `max_bad_share` allows cannot be read."""
        if len(self.bad) <= self.max_bad_share * len(self.source):
            return
        first = "\n".join(f"  {bad.path}: {bad.reason}" for bad in [*self.bad.values()][:5])
        raise DataError(
            f"{len(self.bad)} of {len(self.source)} files cannot be read, more than the share of "
            f"{self.max_bad_share:g} that data.max_bad_share allows:\n{first}"
        )


def _groups(source: Source, shuffle: str) -> Layout | None:
    """Give the groups to shuffle by; None where the source is to be shuffled as a whole."""
    layout = source.layout if isinstance(source, Images) else None
    if shuffle == "whole" or (shuffle == "auto" and not (layout and layout.slow)):
        return None
    if layout is None:
        raise ConfigError(
            "data.shuffle is grouped, but these images are files of their own, in no groups; "
            "give --data.shuffle whole"
        )
    assert isinstance(source, Images)
    return layout.at(source.rows)


def _labels(source: Source) -> np.ndarray:
    if isinstance(source, Images):
        return source.own_labels().astype(np.int64)
    return np.array([source.label(i) for i in range(len(source))], np.int64)
