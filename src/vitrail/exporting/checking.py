"""How far an exported file is from the model that it was made from: in numbers, and on images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vitrail.data.sources import Source
from vitrail.engines.engine import Engine
from vitrail.engines.torch_engine import TorchEngine
from vitrail.errors import OutputError
from vitrail.inference.evaluate import Scored, scored
from vitrail.weights.bundle import Bundle

TOLERANCE = 1e-4  # two orders of the same float32 sums; of the largest logit where it is above 1
BATCHES = (1, 3, 8)
_WORST = 10  # images that a card names


class Difference(NamedTuple):
    """The largest difference of a logit to torch's in float32, on noise of one shape."""

    batch: int
    image_size: tuple[int, int]
    largest: float  # difference
    logit: float  # the largest of torch's

    @property
    def error(self) -> float:
        """The difference, as a share of the largest logit where that is above 1."""
        return self.largest / max(1.0, self.logit)


class Worst(NamedTuple):
    """An image whose logits differ most."""

    path: str
    difference: float
    torch: str  # its answer
    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OnImages:
    """What becomes of the answers to labelled images; rates are fractions from 0 to 1."""

    data: str
    images: int
    failed: int
    agreement: float  # the share with the same likeliest class
    top1: float  # of the file
    top1_torch: float
    largest: float  # difference of a logit
    worst: tuple[Worst, ...]

    @property
    def change(self) -> float:
        """What the file's accuracy is above torch's; below 0 where it is less."""
        return self.top1 - self.top1_torch


def plain_engine(bundle: Bundle) -> TorchEngine:
    """Give what files are held against: the model itself, in float32 on the CPU."""
    return TorchEngine(bundle.model.to("cpu"), bundle.preprocess, packs=False)


def sizes(bundle: Bundle, any_size: bool) -> list[tuple[int, int]]:
    """Give the sizes that a file is tried at: its own, and with any a smaller and an oblong one."""
    own, patch = bundle.preprocess.size, bundle.model.config.patch_size
    if not any_size:
        return [own]
    half = tuple(max(side // patch // 2, 2) * patch for side in own)
    wide = (max(own[0], 2 * patch), max(own[1], 2 * patch) + 3 * patch)
    return list(dict.fromkeys([*([own] if min(own) > patch else []), (half[0], half[1]), wide]))


def differences(
    exact: Engine, found: Engine, shapes: Sequence[tuple[int, int]]
) -> Iterator[Difference]:
    """Compare the answers to pixels of noise, at each image size in each number of images."""
    noise = torch.Generator().manual_seed(0)
    channels = len(exact.preprocess.normalize(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))[0])
    for size in shapes:
        for count in BATCHES:
            shape = (count, channels, *size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
            wanted = exact.run(images)
            far = (wanted - found.run(images)).abs().max()
            yield Difference(count, size, float(far), float(wanted.abs().max()))


def check_differences(rows: Sequence[Difference], name: str) -> None:
    """Raise `OutputError` where a file in float32 is further away than `TOLERANCE`."""
    worst = max(rows, key=lambda row: row.error if row.error == row.error else float("inf"))
    if not worst.error <= TOLERANCE:  # what is no number is not
        raise OutputError(
            f"{name} is not written: its logits differ by {worst.largest:.1g} from torch's, the "
            f"largest of which is {worst.logit:.1g}, at {worst.image_size[0]} x "
            f"{worst.image_size[1]} in a batch of {worst.batch}; at most {TOLERANCE:.0e} is an "
            "export. Another format may do better; please report it"
        )


def on_images(
    exact: Engine, found: Engine, bundle: Bundle, source: Source, data: str, **reading: Any
) -> OnImages:
    """Have both answer for every image of a source."""
    return compared(
        scored(exact, bundle, source, **reading), scored(found, bundle, source, **reading), data
    )


def compared(exact: Scored, found: Scored, data: str) -> OnImages:
    """Compare two engines' answers to the same images."""
    far = np.abs(exact.scores - found.scores).max(axis=1)
    ours, theirs = exact.scores.argmax(axis=1), found.scores.argmax(axis=1)
    # Answers that differ come first: a large logit may be far away and mean the same.
    order = np.lexsort((-far, ours == theirs))[:_WORST]
    return OnImages(
        data=data,
        images=len(far),
        failed=len(exact.bad),
        agreement=float((ours == theirs).mean()),
        top1=float((theirs == exact.labels).mean()),
        top1_torch=float((ours == exact.labels).mean()),
        largest=float(far.max()),
        worst=tuple(
            Worst(exact.paths[i], float(far[i]), exact.names[ours[i]], exact.names[theirs[i]])
            for i in order.tolist()
        ),
    )


def check_agreement(found: OnImages, floor: float, name: str) -> None:
    """Raise `OutputError` where a file answers too few images as the model does."""
    if not found.agreement >= floor:
        raise OutputError(
            f"{name} is not written: it answers {found.agreement:.2%} of {found.images:,} images "
            f"as torch in float32 does, and at least {floor:.2%} is asked for; its accuracy is "
            f"{found.top1:.2%}, and {found.top1_torch:.2%} before. Give another dtype, more images "
            "to calibrate on, or a lower --agreement"
        )
