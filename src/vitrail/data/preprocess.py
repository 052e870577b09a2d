"""`Preprocess`: what is done to an image before the model sees it; it travels with the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.decode import to_array
from vitrail.errors import ConfigError, DataError

MOST_ASPECT = 100  # a strip of 3 x 9,000 brought to 224 pixels would take gigabytes
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


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
            ("interpolation", _FILTERS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, not one of {', '.join(choices)}"
                )

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Give the image as the model's uint8 input, C H W."""
        short, long = sorted(image.size)
        if not short or long > MOST_ASPECT * short:
            raise DataError(
                f"{image.width} x {image.height} pixels; one side may be up to {MOST_ASPECT} times "
                "the other"
            )
        height, width = self.size
        if self.resize == "pad":
            return self._padded(image)
        tall, wide = round(height / self.crop), round(width / self.crop)
        if self.resize == "shortest":
            # The longer side is cut to whole pixels, as by torchvision, timm and Hugging Face.
            tall, wide = (
                max(tall, image.height * wide // image.width),
                max(wide, image.width * tall // image.height),
            )
        pixels = to_array(self._resized(image, tall, wide), self.channels)
        top, left = round((tall - height) / 2), round((wide - width) / 2)  # torchvision's centre
        return pixels[:, top : top + height, left : left + width]

    def normalize(self, images: Tensor) -> Tensor:
        """Turn a uint8 batch, B C H W, into the model's floating-point input on its device."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
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

    def _padded(self, image: Image.Image) -> np.ndarray:
        height, width = self.size
        scale = min(height / image.height, width / image.width)
        tall, wide = max(round(image.height * scale), 1), max(round(image.width * scale), 1)
        fill = np.rint(255 * np.array(self.mean)).astype(np.uint8)
        canvas = np.broadcast_to(fill[:, None, None], (self.channels, height, width)).copy()
        top, left = (height - tall) // 2, (width - wide) // 2
        pixels = to_array(self._resized(image, tall, wide), self.channels)
        canvas[:, top : top + tall, left : left + wide] = pixels
        return canvas

    def _resized(self, image: Image.Image, tall: int, wide: int) -> Image.Image:
        if image.size == (wide, tall):
            return image
        if self.antialias:
            return image.resize((wide, tall), _FILTERS[self.interpolation])
        # Pillow has no other way to leave antialiasing out: an affine map reads single points.
        across, down = image.width / wide, image.height / tall
        return image.transform(
            (wide, tall),
            Image.Transform.AFFINE,
            (across, 0, 0, 0, down, 0),
            _FILTERS[self.interpolation],
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30  # JSON has no largest number
