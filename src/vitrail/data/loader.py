"""Sources to batches: decoded in threads, in an order that only (seed, epoch) decides."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.config import Augment
from vitrail.data.crop import draw_crops, random_crop
from vitrail.data.decode import open_image
from vitrail.data.draws import order
from vitrail.data.preprocess import Preprocess, sides
from vitrail.data.sources import Source
from vitrail.errors import ConfigError, DataError

CropDraws = Callable[[np.ndarray], np.ndarray]  # places of samples -> the numbers of their crops
KEPT_BYTES = 512 * 2**20  # decoded images up to this size stay in memory: MNIST and CIFAR do


class Batch(NamedTuple):
    """Images uint8 B C H W, labels B, and where in the source and the epoch they come from."""

    images: Tensor
    labels: Tensor
    places: np.ndarray  # B: the samples' places in their source
    keys: np.ndarray  # B: what is drawn for a sample is drawn from (seed, epoch, key)
    blocks: np.ndarray  # B: the block of the epoch in which a sample is mixed with another
    epoch: int


class BadFile(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


class Loader:
    """Batches of a source. A file that cannot be read is left out of them and listed in `bad`."""

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        batch_size: int,
        *,
        threads: int = 2,
        max_bad_share: float = 0.01,
        decode: Literal["exact", "fast"] = "exact",
        augment: Augment = Augment(),
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it should be 1 or more")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.threads, self.max_bad_share = threads, max_bad_share
        self.fast, self.augment = decode == "fast", augment
        self.bad: dict[int, BadFile] = {}
        self.shape = (preprocess.channels, *preprocess.size)
        crops = augment.crop_scale is not None  # anew in every epoch
        keep = not crops and len(source) * int(np.prod(self.shape)) <= KEPT_BYTES
        self.kept = np.empty((len(source), *self.shape), np.uint8) if keep else None
        self.decoded = np.zeros(len(source), bool)  # which rows of `kept` are filled

    def steps(self) -> int:
        """Whole batches in a training epoch."""
        return len(self.source) // self.batch_size

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Give the whole batches of a shuffled epoch, from batch `start` on, randomly cropped."""
        whole = self.steps() * self.batch_size
        crops = None
        if self.augment.crop_scale is not None:
            crops = partial(draw_crops, seed, epoch)
        return self._batches(order(seed, epoch, len(self.source))[:whole], start, crops)

    def once(self) -> Iterator[Batch]:
        """Give every sample once, in the source's own order; the last batch may be smaller."""
        return self._batches(np.arange(len(self.source)), 0)

    def _batches(
        self, indices: np.ndarray, start: int, crops: CropDraws | None = None
    ) -> Iterator[Batch]:
        """Decode two batches ahead of the one in use."""
        parts = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        ahead: deque[tuple[np.ndarray, np.ndarray, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(self.threads, "decode") as pool:
            for part in parts[start:]:
                ahead.append(self._submit(pool, part, crops))
                if len(ahead) > 2:
                    yield self._finish(*ahead.popleft())
            while ahead:
                yield self._finish(*ahead.popleft())

    def _submit(
        self, pool: ThreadPoolExecutor, part: np.ndarray, crops: CropDraws | None
    ) -> tuple[np.ndarray, np.ndarray, list[Future[None]]]:
        rows = np.empty((len(part), *self.shape), np.uint8)
        waiting = np.arange(len(part))
        if self.kept is not None:
            ready = self.decoded[part]
            rows[ready] = self.kept[part[ready]]
            waiting = waiting[~ready]
        shares = [share for share in np.array_split(waiting, self.threads) if len(share)]
        draws = None if crops is None else crops(part)
        return part, rows, [pool.submit(self._decode, rows, part, share, draws) for share in shares]

    def _decode(
        self, rows: np.ndarray, part: np.ndarray, share: np.ndarray, draws: np.ndarray | None
    ) -> None:
        """Read some samples of a batch, each straight into its row."""
        for row in share.tolist():
            index = int(part[row])
            if index in self.bad:
                continue
            try:
                self._fill(rows[row], index, None if draws is None else draws[row])
            except (DataError, OSError) as error:
                self.bad[index] = BadFile(self.source.name(index), str(error))
                continue
            if self.kept is not None:
                self.kept[index] = rows[row]
                self.decoded[index] = True

    def _fill(self, row: np.ndarray, index: int, draws: np.ndarray | None) -> None:
        image = open_image(self.source.read(index))
        how = self.augment
        if draws is None or how.crop_scale is None:
            self.preprocess.pixels(image, fast=self.fast, out=row)
            return
        crop = random_crop(
            *sides(image), draws, scale=how.crop_scale, ratio=how.crop_ratio, flip=how.flip
        )
        self.preprocess.cropped(image, crop, fast=self.fast, out=row)

    def _finish(self, part: np.ndarray, rows: np.ndarray, decoding: list[Future[None]]) -> Batch:
        blocks = np.arange(len(part)) // 8
        for future in decoding:
            future.result()
        if len(self.bad) > self.max_bad_share * len(self.source):
            raise DataError(self._too_many())
        if self.bad:
            good = np.array([i not in self.bad for i in part.tolist()])
            part, rows, blocks = part[good], rows[good], blocks[good]
        labels = [self.source.label(i) for i in part.tolist()]
        return Batch(
            torch.from_numpy(rows), torch.tensor(labels, dtype=torch.int64), part, part, blocks, 0
        )

    def _too_many(self) -> str:
        first = "\n".join(f"  {bad.path}: {bad.reason}" for bad in [*self.bad.values()][:5])
        return (
            f"{len(self.bad)} of {len(self.source)} files cannot be read, more than the share of "
            f"{self.max_bad_share:g} that data.max_bad_share allows:\n{first}"
        )
