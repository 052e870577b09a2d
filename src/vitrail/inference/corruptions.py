"""Simple corruptions of images, and how much accuracy they cost.

In the spirit of ImageNet-C (Hendrycks and Dietterich 2019): five kinds at five severities, defined
on the model's uint8 input, after resizing, as there. Noise, contrast and JPEG quality are theirs.
The blur's sigma is theirs at 224 pixels and shrinks with the root of the shorter side, so that at
32 pixels it begins at 0.4, as in their CIFAR-10-C. Occlusion, which they do not have, is one grey
patch. All that is drawn comes from (seed, place of the image, severity).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from vitrail.data.draws import uniform
from vitrail.data.loader import Loader
from vitrail.engines.engine import Engine
from vitrail.engines.torch_engine import check_finite
from vitrail.errors import DataError, nearest
from vitrail.inference.measures import wilson

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # sigma of values in 0 .. 1
_BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # sigma in pixels of an image of 224
_JPEG = (25, 18, 15, 10, 7)  # quality
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # of the distance to each channel's mean
_OCCLUSION = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the area


class Corrupted(NamedTuple):
    """The accuracy on images that were corrupted in one way."""

    kind: str
    severity: int
    top1: float
    top1_interval: tuple[float, float]


def corrupt(images: Tensor, kind: str, severity: int, places: np.ndarray, seed: int = 0) -> Tensor:
    """Give uint8 images, B C H W, corrupted; `places`, B, say which random numbers are theirs.

    `kind` is one of noise, blur, jpeg, contrast and occlusion; `severity` is 1 to 5.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise DataError(
            f'there is no corruption "{kind}" of severity {severity}, but {", ".join(KINDS)} of 1 '
            f"to 5.{nearest(kind, KINDS)}"
        )
    pixels = images.numpy()
    rows = [
        KINDS[kind](row, severity, place, seed) for row, place in zip(pixels, places, strict=True)
    ]
    return torch.from_numpy(np.stack(rows)) if rows else images


def corruption_results(
    engine: Engine,
    loader: Loader,
    names: tuple[str, ...],
    seed: int = 0,
    seen: Callable[[int], None] = lambda count: None,
) -> tuple[Corrupted, ...]:
    """Measure the accuracy under each kind and severity; every image is decoded once.

    `seen` is told of each image once for each of them.
    """
    place_of = np.array([names.index(name) for name in loader.source.classes])
    right, count = {(k, s): 0 for k in KINDS for s in SEVERITIES}, 0
    for batch in loader.once():
        if not len(batch.labels):
            continue
        labels = place_of[batch.labels.numpy()]
        count += len(labels)
        for kind, severity in right:
            images = corrupt(batch.images, kind, severity, batch.places, seed)
            scores = engine.run(images).cpu()
            check_finite(scores)
            right[kind, severity] += int((scores.argmax(dim=1).numpy() == labels).sum())
            seen(len(labels))
    return tuple(
        Corrupted(kind, severity, hits / count, wilson(hits, count))
        for (kind, severity), hits in right.items()
    )


def _noise(image: np.ndarray, severity: int, place: int, seed: int) -> np.ndarray:
    # Box and Muller 1958: two uniform numbers make two normal ones.
    numbers = _drawn(seed, severity, place, 2 * -(-image.size // 2)).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log1p(-numbers[0])), 2 * np.pi * numbers[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: image.size]
    return _bytes(image + 255 * _NOISE[severity - 1] * normal.reshape(image.shape))


def _blur(image: np.ndarray, severity: int, place: int, seed: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    sigma = _BLUR[severity - 1] * (min(image.shape[1:]) / 224) ** 0.5
    smooth = gaussian_filter1d(image.astype(np.float64), sigma, axis=1, mode="nearest")
    return _bytes(gaussian_filter1d(smooth, sigma, axis=2, mode="nearest"))


def _jpeg(image: np.ndarray, severity: int, place: int, seed: int) -> np.ndarray:
    space = "GRAY" if len(image) == 1 else "RGB"
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    data = simplejpeg.encode_jpeg(pixels, quality=_JPEG[severity - 1], colorspace=space)
    return np.ascontiguousarray(simplejpeg.decode_jpeg(data, space).transpose(2, 0, 1))


def _contrast(image: np.ndarray, severity: int, place: int, seed: int) -> np.ndarray:
    mean = image.mean(axis=(1, 2), keepdims=True)
    return _bytes((image - mean) * _CONTRAST[severity - 1] + mean)


def _occlusion(image: np.ndarray, severity: int, place: int, seed: int) -> np.ndarray:
    share = np.sqrt(_OCCLUSION[severity - 1])
    tall, wide = (max(round(side * share), 1) for side in image.shape[1:])
    down, right = _drawn(seed, severity, place, 2)
    top = int(down * (image.shape[1] - tall + 1))
    left = int(right * (image.shape[2] - wide + 1))
    covered = image.copy()
    covered[:, top : top + tall, left : left + wide] = 128
    return covered


def _drawn(seed: int, severity: int, place: int, count: int) -> np.ndarray:
    return uniform(seed, severity, np.array([place]), count)[0]


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values.clip(0, 255)).astype(np.uint8)


KINDS: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "contrast": _contrast,
    "occlusion": _occlusion,
}
