"""Answers for images: the likeliest classes of each, or why there is none."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vitrail.data.images import ImageLike, items_of, listed
from vitrail.data.inputs import Item
from vitrail.engines import build
from vitrail.engines.engine import Engine
from vitrail.engines.exported_files import Answering
from vitrail.engines.torch_engine import check_finite
from vitrail.errors import ConfigError, check_counts
from vitrail.inference.runner import Outputs, outputs


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
    bundle: Answering,
    images: ImageLike | Iterable[ImageLike],
    top: int = 5,
    *,
    batch_size: int = 64,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> list[Prediction]:
    """Answer for one image or many, in their order.

    Images are paths, bytes, PIL images, numpy arrays (H W C, uint8) or tensors (C H W, uint8). One
    that cannot be read has an error in its place, and the others are answered. `merge` and
    `aspect` are as in `vitrail.engine`.
    """
    how = {"engine": engine, "device": device, "dtype": dtype, "merge": merge, "aspect": aspect}
    answers = stream(bundle, listed(images), top, batch_size=batch_size, threads=threads, **how)
    return list(answers)


def stream(
    bundle: Answering,
    images: Iterable[ImageLike],
    top: int = 5,
    *,
    batch_size: int = 64,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> Iterator[Prediction]:
    """Answer one by one, as `predict`: the list of images may be longer than memory, or endless.

    Up to three batches are read ahead of the one that is answered. Engine `auto` is torch where
    there is no telling how many images there are: name another one if they are many.
    """
    check_answers(bundle, top)
    on = {"device": device, "merge": merge, "aspect": aspect}
    count = len(images) if isinstance(images, Sized) else 0
    runs = build.engine(bundle, engine, dtype, **on, images=count)
    items = items_of(images)
    for batch in batches(runs, bundle.labels, items, top, batch_size=batch_size, threads=threads):
        yield from batch


def check_answers(bundle: Answering, top: int) -> None:
    """Raise `ConfigError` for a model that has no classes, or a number of them that is none."""
    if not bundle.labels:
        raise ConfigError("this model has no classes to answer with: it gives features (classes 0)")
    check_counts(top=top)


def batches(
    runs: Engine,
    labels: tuple[str, ...],
    items: Iterable[Item],
    top: int = 5,
    *,
    batch_size: int = 64,
    threads: int = 2,
) -> Iterator[list[Prediction]]:
    """Answer batch by batch for images of any kind, by any engine."""

    def probabilities(images: Tensor) -> Tensor:
        return runs.run(images).softmax(dim=1)

    how = {"batch_size": batch_size, "threads": threads}
    for found in outputs(probabilities, items, runs.preprocess, runs.device, **how):
        yield _predictions(found, labels, top)


def _predictions(found: Outputs, labels: tuple[str, ...], top: int) -> list[Prediction]:
    check_finite(found.values)
    best = iter(likeliest(found.values, labels, top) if len(found.values) else ())
    return [
        Prediction(path=item.name, error=error, top=next(best) if error is None else ())
        for item, error in zip(found.items, found.errors, strict=True)
    ]


def likeliest(probabilities: Tensor, labels: tuple[str, ...], top: int) -> list[tuple[Answer, ...]]:
    """Give the `top` likeliest classes of each row of probabilities, N classes, best first."""
    values, places = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return [
        tuple(
            Answer(label=labels[i], index=i, probability=p)
            for p, i in zip(row_values, row_places, strict=True)
        )
        for row_values, row_places in zip(values.tolist(), places.tolist(), strict=True)
    ]
