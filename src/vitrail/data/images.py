"""Whatever a caller has that is an image: a file, its bytes, or pixels in memory."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.decode import Jpeg, open_image, upright
from vitrail.data.inputs import Item, file_item
from vitrail.errors import ConfigError, DataError

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor


def listed(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Give one image as a list of it, and others as they are; raises `ConfigError` for neither."""
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        return [images]
    if not isinstance(images, Iterable):
        raise ConfigError(f"images is {images!r}; it should be one image, or several in a list")
    return images


def items_of(images: Iterable[ImageLike]) -> Iterator[Item]:
    """Give each image as an item: a file by its path, others as `image 0`, `image 1` ..."""
    for place, image in enumerate(images):
        if isinstance(image, str | Path):
            yield file_item(image)
        else:
            in_memory = not isinstance(image, bytes)
            yield Item(f"image {place}", partial(open_any, image), in_memory=in_memory)


def open_any(image: ImageLike | Jpeg) -> Jpeg | np.ndarray:
    """Give a JPEG by its header, or pixels, H W C, upright: what `Preprocess.pixels` reads.

    Images are paths, bytes, PIL images, numpy arrays (H W C, uint8), tensors (C H W, uint8), or
    opened already.
    Raises `DataError` for what is no image or cannot be read.
    """
    try:
        if isinstance(image, str | Path):
            return open_image(Path(image).read_bytes())
        if isinstance(image, Image.Image):
            return upright(image)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name with a zero byte
        raise DataError(f"the file cannot be read: {error}") from error
    if isinstance(image, Jpeg):
        return image
    return open_image(image) if isinstance(image, bytes) else _array(image)


def _array(image: np.ndarray | Tensor) -> np.ndarray:
    """Give H W C pixels of an array, or of a tensor, whose channels come first."""
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
