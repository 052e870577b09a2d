"""Answers for images: the likeliest classes of each, or why there is none."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.decode import open_image
from vitrail.data.preprocess import Picture
from vitrail.errors import ConfigError, DataError
from vitrail.inference.runner import pick_device, precision
from vitrail.weights.bundle import Bundle

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One class and how likely it is."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer for one image: the likeliest classes first, or an error and none."""

    path: str
    error: str | None
    top: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Give plain values: one line of `vitrail predict --format jsonl`."""
        return asdict(self)


def predict(
    bundle: Bundle,
    images: ImageLike | Iterable[ImageLike],
    top: int = 5,
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
) -> list[Prediction]:
    """Answer for one image or many, in their order.

    Images are paths, bytes, PIL images, numpy arrays (H W C, uint8) or tensors (C H W, uint8). One
    that cannot be read has an error in its place, and the others are answered.
    """
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        images = [images]
    return list(stream(bundle, images, top, batch_size=batch_size, device=device, dtype=dtype))


def stream(
    bundle: Bundle,
    images: Iterable[ImageLike],
    top: int = 5,
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
) -> Iterator[Prediction]:
    """Answer batch by batch, as `predict`: the list of images may be longer than memory."""
    if not bundle.labels:
        raise ConfigError("this model has no classes to answer with: it gives features (classes 0)")
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it should be 1 or more")
    where = pick_device(device)
    model = bundle.model.to(where).eval()
    waiting = iter(enumerate(images))
    while batch := list(islice(waiting, batch_size)):
        names = [_name(image, i) for i, image in batch]
        pixels = [_pixels(bundle, image) for _, image in batch]
        good = [p for p in pixels if isinstance(p, np.ndarray)]
        answers: Iterator[tuple[Answer, ...]] = iter(())
        if good:
            stacked = torch.from_numpy(np.stack(good)).to(where)
            with torch.inference_mode(), precision(where, dtype):
                scores = model(bundle.preprocess.normalize(stacked))
            answers = iter(_best(bundle, scores.float().softmax(dim=1).cpu(), top))
        for name, found in zip(names, pixels, strict=True):
            if isinstance(found, np.ndarray):
                yield Prediction(path=name, error=None, top=next(answers))
            else:
                yield Prediction(path=name, error=found, top=())


def _pixels(bundle: Bundle, image: ImageLike) -> np.ndarray | str:
    """Give the model's uint8 input, C H W, or what is wrong with the image."""
    try:
        return bundle.preprocess.pixels(_open(image))
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"the file cannot be read: {error.strerror or error}"
    except ValueError as error:  # a name with a zero byte
        return f"the file cannot be read: {error}"


def _open(image: ImageLike) -> Picture:
    if isinstance(image, str | Path):
        return open_image(Path(image).read_bytes())
    if isinstance(image, bytes):
        return open_image(image)
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray | Tensor):
        raise DataError(f"{type(image).__name__} is no image")
    channels = {2: 1, 3: image.shape[0 if isinstance(image, Tensor) else -1]}.get(image.ndim)
    if image.dtype not in (np.uint8, torch.uint8) or channels not in (1, 3) or 0 in image.shape:
        raise DataError(
            f"an array of {image.dtype} and shape {tuple(image.shape)} is no image: uint8 and "
            "H W C is wanted (a tensor: C H W), with 1 or 3 channels"
        )
    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    if isinstance(image, Tensor) and image.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    return array[..., None] if array.ndim == 2 else array


def _best(bundle: Bundle, probabilities: Tensor, top: int) -> list[tuple[Answer, ...]]:
    values, places = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return [
        tuple(
            Answer(label=bundle.labels[i], index=i, probability=p)
            for p, i in zip(row_values, row_places, strict=True)
        )
        for row_values, row_places in zip(values.tolist(), places.tolist(), strict=True)
    ]


def _name(image: ImageLike, place: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {place}"
