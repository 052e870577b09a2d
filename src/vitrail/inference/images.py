"""Images in every form that a program may hold them in, as items of one stream."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.decode import open_image
from vitrail.data.inputs import Item, file_item
from vitrail.data.preprocess import Picture
from vitrail.errors import DataError

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor


def listed(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Give one image as a list of it, and others as they are."""
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        return [images]
    return images


def items_of(images: Iterable[ImageLike]) -> Iterator[Item]:
    """Give each image as an item: a file by its path, others as `image 0`, `image 1` ..."""
    for place, image in enumerate(images):
        name = f"image {place}"
        if isinstance(image, str | Path):
            yield file_item(image)
        elif isinstance(image, bytes):
            yield Item(name, partial(open_image, image))
        else:
            yield Item(name, partial(_held, image), in_memory=True)


def _held(image: object) -> Picture:
    """Give an image that is in memory; raises `DataError` for what is none."""
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
