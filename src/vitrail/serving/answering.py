"""What a server answers with: pixels from bytes, and each kind of work on a batch of them."""

from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import Jpeg, open_image, size_of
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import Engine, torch_engine
from vitrail.engines.torch_engine import TorchEngine, check_finite
from vitrail.errors import ConfigError, DataError
from vitrail.explaining.explain import explain
from vitrail.inference.predict import Answer, likeliest
from vitrail.serving.batcher import Work
from vitrail.weights.bundle import Bundle

EXPLAINED_AS = 4.0  # an explanation's cost in answers, until one was measured


class Asked(NamedTuple):
    """An image for `predict`, and how many classes its answer has."""

    pixels: np.ndarray  # C H W, uint8
    top: int


class ToExplain(NamedTuple):
    """An image for `explain`, and what it is asked for."""

    image: np.ndarray  # H W C, uint8
    how: dict[str, Any]


class Answerer:
    """A bundle, the engine that runs it, and what is done for a request.

    The last bits of an engine's answer may depend on how many images a batch has. `floor` is the
    smallest batch from which they do not; a smaller one is filled up to it, so that an answer is
    the same whatever else the server does.
    """

    def __init__(self, bundle: Bundle, engine: Engine, batch_size: int, pixels: int) -> None:
        if not isinstance(engine.preprocess, Preprocess):
            raise ConfigError("a server takes images at one size: leave aspect out")
        self.bundle, self.engine, self.preprocess = bundle, engine, engine.preprocess
        self.batch_size, self.most_pixels = batch_size, pixels
        # Features are torch's: another engine gives logits alone.
        where = str(engine.device)
        self.torch = (
            engine
            if isinstance(engine, TorchEngine)
            else torch_engine(bundle, "float32", where.partition(":")[0])
        )
        self.floor, self.seconds_each = self._measured()

    def kinds(self) -> dict[str, Work]:
        """Give each kind of work; those without classes have no predict."""
        found = {"embed": Work(self.embed, self.batch_size), "explain": Work(self.explain, 1)}
        return {"predict": Work(self.predict, self.batch_size)} | found

    def seconds(self) -> dict[str, float]:
        """Give what one image takes, by kind of work, as far as it is known at the start."""
        each = self.seconds_each
        return {"predict": each, "embed": each, "explain": EXPLAINED_AS * each}

    def opened(self, data: bytes) -> np.ndarray:
        """Give the pixels of an image file, H W C; raises `DataError` for what is none."""
        # The header is read first: a small file may unpack to gigabytes.
        width, height = size_of(data)
        if width * height > self.most_pixels:
            raise DataError(f"{width} x {height} pixels; the limit is {self.most_pixels:,}")
        image = open_image(data)
        return image.pixels() if isinstance(image, Jpeg) else image

    def pixels(self, data: bytes) -> np.ndarray:
        """Give the model's input, C H W in uint8, of an image file, as `opened`."""
        return self.preprocess.pixels(self.opened(data))

    def predict(self, asked: Sequence[Asked]) -> list[tuple[Answer, ...]]:
        """Give the likeliest classes of each image."""
        found = self._filled([each.pixels for each in asked])
        probabilities = self.engine.run(found).softmax(dim=1).cpu()[: len(asked)]
        check_finite(probabilities)
        return [
            likeliest(row[None], self.bundle.labels, each.top)[0]
            for row, each in zip(probabilities, asked, strict=True)
        ]

    def embed(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Give the features of each image, D, that the head reads."""
        model, runs = self.torch.model, self.torch
        found = runs.apply(lambda images: model.pool(runs.tokens(images)), self._filled(pixels))
        found = found.cpu()[: len(pixels)]
        check_finite(found)
        return list(found.numpy())

    def explain(self, asked: Sequence[ToExplain]) -> list[dict[str, Any]]:
        """Give what each image's answer rests on."""
        device = self.torch.device.type
        found = [explain(self.bundle, image, device=device, **how) for image, how in asked]
        return [
            each.to_json()
            | {
                "size": list(each.image.shape[:2]),
                "seen": list(each.seen),
                "maps": _plain(each.maps),
                "prefix": _plain(each.prefix),
            }
            for each in found
        ]

    def _filled(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Give a batch, B C H W, of at least `floor` images: repeats of the first fill it up."""
        rows = [*pixels, *[pixels[0]] * (self.floor - len(pixels))]
        return torch.from_numpy(np.stack(rows))

    def _measured(self) -> tuple[int, float]:
        """Find the smallest batch whose answers are those of the largest, and an image's time."""
        sizes = [1]
        while sizes[-1] < self.batch_size:
            sizes.append(min(2 * sizes[-1], self.batch_size))
        draws = np.random.default_rng(0)
        shape = (self.batch_size, self.preprocess.channels, *self.preprocess.size)
        images = torch.from_numpy(draws.integers(0, 256, shape, dtype=np.uint8))
        self.engine.run(images)  # what is done once, at the first call, takes no part
        began = monotonic()
        wanted = self.engine.run(images).cpu()
        each = (monotonic() - began) / self.batch_size
        floor = self.batch_size
        for size in reversed(sizes[:-1]):
            found = self.engine.run(images[:size]).cpu()
            if not torch.equal(found, wanted[:size]):
                break
            floor = size
        return floor, each


def _plain(values: np.ndarray) -> list[Any]:
    """Give the shortest decimals that read back as the same float32."""
    flat = np.array([float(text) for text in values.astype(np.float32).ravel().astype(str)])
    return flat.reshape(values.shape).tolist()
