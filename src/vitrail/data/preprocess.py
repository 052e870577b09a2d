"""`Preprocess`: what is done to an image before the model sees it; it travels with the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.crop import Crop
from vitrail.data.decode import Jpeg, check_size, upright
from vitrail.data.resize import resized
from vitrail.errors import ConfigError, DataError

Picture = Jpeg | np.ndarray | Image.Image  # as `open_image` gives it, or H W C pixels, or PIL's


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """From any image to the model's input: resize, crop, scale to 0 .. 1, normalise.

    `shortest` brings the shorter side to size / crop and cuts the centre; `square` stretches to
    size / crop and cuts the centre; `pad` fits the whole image in and fills up with the mean.
    """

    size: tuple[int, int]  # H, W
    resize: Literal["shortest", "square", "pad"] = "shortest"
    crop: float = 1.0  # the share of the resized image's side that is kept
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each channel, in 0 .. 1
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not (
            isinstance(self.size, tuple)
            and len(self.size) == 2
            and all(type(side) is int and side > 0 for side in self.size)
        ):
            raise ConfigError(f"size is {self.size!r}; it should be H and W, whole and above 0")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(map(_is_number, values)):
                raise ConfigError(f"{name} is {values!r}; it should be a number for each channel")
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ConfigError(
                f"mean {self.mean} and std {self.std} need as many numbers, std above 0"
            )
        if not _is_number(self.crop) or not 0 < self.crop <= 1:
            raise ConfigError(f"crop is {self.crop!r}; it should be above 0, at most 1")
        if type(self.antialias) is not bool:
            raise ConfigError(f"antialias is {self.antialias!r}; it should be true or false")
        for name, choices in (
            ("resize", ("shortest", "square", "pad")),
            ("interpolation", ("bilinear", "bicubic")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, not one of {', '.join(choices)}"
                )

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    def pixels(
        self, image: Picture, *, fast: bool = False, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Give the image as the model's uint8 input, C H W, in `out` where that is given.

        `fast` decodes a JPEG at a half, a quarter or an eighth of its size, where that is still
        no smaller than what it is resized to.
        """
        if isinstance(image, Image.Image):
            image = upright(image)
        height, width = sides(image)
        check_size(width, height)
        tall, wide = self._fitted(height, width)
        top, left = self._place(tall, wide)
        whole = Crop(0, 0, height, width, flip=False)
        pixels = self._resized(image, whole, tall, wide, fast)
        out = self._row() if out is None else out
        inner = out
        if self.resize == "pad":
            out[:] = np.rint(255 * np.array(self.mean)).astype(np.uint8)[:, None, None]
            inner = out[:, -top : tall - top, -left : wide - left]
        else:
            pixels = pixels[top : top + self.size[0], left : left + self.size[1]]
        self._write(pixels, inner)
        return out

    def cropped(
        self,
        image: Jpeg | np.ndarray,
        crop: Crop,
        *,
        fast: bool = False,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Give a crop of the image, stretched to the model's uint8 input, as `pixels` does."""
        pixels = self._resized(image, crop, *self.size, fast)
        out = self._row() if out is None else out
        self._write(pixels, out)
        if crop.flip:  # torch mirrors bytes in vectors, numpy one by one: a twentieth of all time
            row = torch.from_numpy(out)
            row.copy_(row.flip(2))
        return out

    def seen(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Give the box of an image of this size that the model sees, in the image's pixels.

        Top, left, bottom, right; outside of the image where `pad` fills up.
        """
        tall, wide = self._fitted(height, width)
        top, left = self._place(tall, wide)
        down, across = height / tall, width / wide
        bottom, right = top + self.size[0], left + self.size[1]
        return top * down, left * across, bottom * down, right * across

    def normalize(self, images: Tensor) -> Tensor:
        """Turn a uint8 batch, B C H W, into the model's floating-point input on its device."""
        # Made on the CPU and sent: a tensor made of numbers on a GPU waits for it.
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(images.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return (images.float() / 255 - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Give plain values, as `config.json` stores them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Read what `to_json` gave; anything else is a `ConfigError`."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"this is no preprocessing: {values!r}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            return cls(**plain)
        except TypeError as error:
            raise ConfigError(f"this is no preprocessing: {error}") from error

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """Give the height and width to which a whole image is resized."""
        if self.resize == "pad":
            scale = min(self.size[0] / height, self.size[1] / width)
            return max(round(height * scale), 1), max(round(width * scale), 1)
        tall, wide = round(self.size[0] / self.crop), round(self.size[1] / self.crop)
        if self.resize == "square":
            return tall, wide
        # The longer side is cut to whole pixels, as by torchvision, timm and Hugging Face.
        return max(tall, height * wide // width), max(wide, width * tall // height)

    def _place(self, tall: int, wide: int) -> tuple[int, int]:
        """Give top and left of the model's input in the resized image; below 0 where padded."""
        if self.resize == "pad":
            return -((self.size[0] - tall) // 2), -((self.size[1] - wide) // 2)
        # torchvision's centre
        return round((tall - self.size[0]) / 2), round((wide - self.size[1]) / 2)

    def _resized(
        self, image: Jpeg | np.ndarray, crop: Crop, tall: int, wide: int, fast: bool
    ) -> np.ndarray:
        """Decode what is still to be decoded, and resize the crop of it."""
        if isinstance(image, Jpeg):
            shrink = _shrink(crop, tall, wide) if fast else 1
            image = image.pixels(shrink)
            crop = Crop(*(round(side / shrink) for side in crop[:4]), flip=crop.flip)
        part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return resized(part, tall, wide, self.interpolation, self.antialias)

    def _row(self) -> np.ndarray:
        return np.empty((self.channels, *self.size), np.uint8)

    def _write(self, pixels: np.ndarray, row: np.ndarray) -> None:
        """Copy H W C pixels into C H W ones, grey to colour and colour to grey as it takes."""
        if self.channels not in (1, 3):
            raise DataError(
                f"images are read in 1 or 3 channels, and the model wants {self.channels}"
            )
        if self.channels == 1 and pixels.shape[2] == 3:  # ITU-R 601-2, rounded as Pillow does
            pixels = (pixels @ np.array([[19595], [38470], [7471]], np.uint32) + 0x8000) >> 16
        row[:] = pixels.transpose(2, 0, 1)


def sides(image: Jpeg | np.ndarray) -> tuple[int, int]:
    """Give the height and width of an opened image."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _shrink(crop: Crop, tall: int, wide: int) -> Literal[1, 2, 4, 8]:
    """How far a JPEG may be shrunk in decoding: to no less than is asked for.

    libjpeg has vector code for these; its scales in between take longer than the whole.
    """
    for shrink in (8, 4, 2):
        if crop.height >= shrink * tall and crop.width >= shrink * wide:
            return shrink
    return 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30  # JSON has no largest number
