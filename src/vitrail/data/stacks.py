"""Where the pixels of a batch are put while it is read, and how they are given: in stacks."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.preprocess import Picture, Preprocess


class Stack(NamedTuple):
    """Images of one shape, and their places among those of a batch that can be read."""

    images: Tensor  # uint8 G C H W
    places: Sequence[int]


class Rows(Protocol):
    """A row for each image of a batch, filled in any order and by any thread."""

    def put(self, row: int, image: Picture) -> None:
        """Put the pixels of an image into its row."""
        ...

    def stacks(self, rows: Sequence[int]) -> list[Stack]:
        """Give the images of these rows, which stand in their order; all others are dropped."""
        ...


class OneShape:
    """Rows of an array, uint8 B C H W, which is given as it is."""

    def __init__(self, preprocess: Preprocess, images: Tensor) -> None:
        self.preprocess, self.images, self.array = preprocess, images, images.numpy()

    def put(self, row: int, image: Picture) -> None:
        self.preprocess.pixels(image, out=self.array[row])

    def stacks(self, rows: Sequence[int]) -> list[Stack]:
        if not rows:
            return []
        count = len(rows)  # the last row is the last one of so many where none is left out
        images = self.images[:count] if rows[-1] == count - 1 else self.images[list(rows)]
        return [Stack(images, range(count))]


class OwnShapes:
    """Rows of any shape; those of one shape are put together, at most `most` in a stack."""

    def __init__(self, preprocess: OwnAspect, most: int) -> None:
        self.preprocess, self.most = preprocess, most
        self.pixels: dict[int, np.ndarray] = {}

    def put(self, row: int, image: Picture) -> None:
        self.pixels[row] = self.preprocess.pixels(image)

    def stacks(self, rows: Sequence[int]) -> list[Stack]:
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            of_shape.setdefault(self.pixels[row].shape, []).append(place)
        found = []
        for same in of_shape.values():
            for start in range(0, len(same), self.most):
                places = same[start : start + self.most]
                images = np.stack([self.pixels.pop(rows[place]) for place in places])
                found.append(Stack(torch.from_numpy(images), places))
        return found
