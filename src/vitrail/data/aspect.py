"""Images at their own aspect: as many patches as a model is used to, in a rectangle of their own.

Nothing is stretched or cut to a model's square, as a ViT reads any grid of patches. This is what
NaViT (Dehghani et al. 2023, arXiv:2307.06304) does for training too, with images of many shapes in
one sequence; here images of one shape make a batch.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from vitrail.data.decode import check_size, upright
from vitrail.data.preprocess import Picture, Preprocess, sides


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnAspect:
    """`Preprocess` for whole patches of `patch` pixels, whose size follows each image.

    Of both sides of an image the same share is kept as `plain` keeps of a square, its `crop`: what
    is in the image has about the size that the model has learned.
    """

    plain: Preprocess
    patch: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Give H and W for an image of this size: about as many patches as `plain.size` has.

        Each side is rounded to whole patches, so that the aspect is kept to within half a patch.
        """
        patches = math.prod(side // self.patch for side in self.plain.size)
        down, across = (round(math.sqrt(patches * a)) for a in (height / width, width / height))
        return (
            min(max(down, 1), patches) * self.patch,
            min(max(across, 1), patches) * self.patch,
        )

    def pixels(self, image: Picture) -> np.ndarray:
        """Give the image as uint8 input of its own size, C H W."""
        if isinstance(image, Image.Image):
            image = upright(image)
        height, width = sides(image)
        check_size(width, height)
        # `pad` shows the whole image, whatever its crop says.
        crop = 1.0 if self.plain.resize == "pad" else self.plain.crop
        size = self.size(height, width)
        return replace(self.plain, size=size, resize="square", crop=crop).pixels(image)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn a uint8 batch, B C H W, into the model's floating-point input on its device."""
        return self.plain.normalize(images)
