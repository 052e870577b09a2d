"""Answers for images: the likeliest classes of each, or why there is none."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vitrail.data.images import ImageLike, items_of, listed
from vitrail.data.inputs import Item
from vitrail.engines.build import Engine, engine
from vitrail.engines.torch_engine import check_finite
from vitrail.errors import ConfigError, check_counts
from vitrail.inference.runner import Outputs, outputs
from vitrail.weights.bundle import Bundle


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
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> list[Prediction]:
    """Answer for one image or many, in their order.

    Images are paths, bytes, PIL images, numpy arrays (H W C, uint8) or tensors (C H W, uint8). One
    that cannot be read has an error in its place, and the others are answered. `merge` and
    `aspect` are as in `engine`.
    """
    how = {"batch_size": batch_size, "device": device, "dtype": dtype, "threads": threads}
    return list(stream(bundle, listed(images), top, **how, merge=merge, aspect=aspect))


def stream(
    bundle: Bundle,
    images: Iterable[ImageLike],
    top: int = 5,
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> Iterator[Prediction]:
    """Answer one by one, as `predict`: the list of images may be longer than memory, or endless.

    Up to three batches are read ahead of the one that is answered.
    """
    check_answers(bundle, top)
    found = engine(bundle, dtype=dtype, device=device, merge=merge, aspect=aspect)
    items = items_of(images)
    for batch in batches(found, bundle.labels, items, top, batch_size=batch_size, threads=threads):
        yield from batch


def check_answers(bundle: Bundle, top: int) -> None:
    """Raise `ConfigError` for a model that has no classes, or a number of them that is none."""
    if not bundle.labels:
        raise ConfigError("this model has no classes to answer with: it gives features (classes 0)")
    check_counts(top=top)


def batches(
    engine: Engine,
    labels: tuple[str, ...],
    items: Iterable[Item],
    top: int = 5,
    *,
    batch_size: int = 64,
    threads: int = 2,
) -> Iterator[list[Prediction]]:
    """Answer batch by batch for images of any kind, by any engine."""

    def probabilities(images: Tensor) -> Tensor:
        return engine.run(images).softmax(dim=1)

    how = {"batch_size": batch_size, "threads": threads}
    for found in outputs(probabilities, items, engine.preprocess, engine.device, **how):
        yield _predictions(found, labels, top)


def _predictions(found: Outputs, labels: tuple[str, ...], top: int) -> list[Prediction]:
    check_finite(found.values)
    best = iter(_best(found.values, labels, top) if len(found.values) else ())
    return [
        Prediction(path=item.name, error=error, top=next(best) if error is None else ())
        for item, error in zip(found.items, found.errors, strict=True)
    ]


def _best(probabilities: Tensor, labels: tuple[str, ...], top: int) -> list[tuple[Answer, ...]]:
    values, places = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return [
        tuple(
            Answer(label=labels[i], index=i, probability=p)
            for p, i in zip(row_values, row_places, strict=True)
        )
        for row_values, row_places in zip(values.tolist(), places.tolist(), strict=True)
    ]
