"""How good the answers are: accuracy with its interval, calibration, classes, confusion."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.loader import Loader
from vitrail.data.sources import BadFile, Source, path_of
from vitrail.engines import build
from vitrail.engines.engine import Engine
from vitrail.engines.exported_files import Answering
from vitrail.engines.torch_engine import check_finite
from vitrail.errors import ConfigError, DataError, check_counts
from vitrail.inference.answering import Answers, source_answers
from vitrail.inference.calibration import best_temperature, calibration_error
from vitrail.inference.details import Details, examine
from vitrail.inference.measures import (
    brier,
    confusion_matrix,
    negative_log_likelihood,
    rank_of_label,
    softmax,
    wilson,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """One class: its images, and how it was told from the others."""

    label: str
    count: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The answers to labelled images, measured; every rate is a fraction from 0 to 1."""

    images: int
    failed: int  # files that could not be read; they are in no figure
    loss: float  # mean cross-entropy
    top1: float
    top1_interval: tuple[float, float]  # Wilson's, 95 %
    top5: float
    nll: float
    brier: float
    ece: float  # expected calibration error, 15 equal bins
    temperature: float  # that the logits should be divided by
    per_class: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows true, columns answered
    bad: tuple[BadFile, ...] = ()  # the failed ones
    details: Details | None = None  # what the answers to single images say; none in training

    def to_json(self) -> dict[str, Any]:
        """Give plain values, in the form of `vitrail eval --json`: the details come last."""
        plain = asdict(replace(self, bad=(), details=None))
        del plain["bad"], plain["details"]
        return plain | (self.details.to_json() if self.details else {})


class Scored(NamedTuple):
    """The answers to the images of a source that could be read, a row each, in its order."""

    scores: np.ndarray  # logits, N classes of `names`
    labels: np.ndarray  # N, places in `names`
    names: tuple[str, ...]
    places: np.ndarray  # N, in the source
    paths: tuple[str, ...]
    sides: np.ndarray  # N 2: height and width of each image
    bad: tuple[BadFile, ...]

    def figures(self) -> Evaluation:
        """Measure the answers, without details."""
        return measure(self.scores, self.labels, self.names, self.bad)

    def evaluation(self) -> Evaluation:
        """Measure the answers, with all details."""
        details = examine(self.scores, self.labels, self.sides, self.paths, self.names)
        return replace(self.figures(), details=details)

    def right(self) -> dict[int, bool]:
        """Say of each image, by its place in the source, whether it was told."""
        hits = self.scores.argmax(axis=1) == self.labels
        return dict(zip(self.places.tolist(), hits.tolist(), strict=True))


def evaluate(
    bundle: Answering,
    source: Source,
    *,
    batch_size: int = 64,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> Evaluation:
    """Answer for every image of `source` and measure the answers.

    Labels go by class name: raises `DataError` where the source has a class that the bundle
    cannot answer. `merge` and `aspect` are as in `vitrail.engine`.
    """
    how = {"engine": engine, "device": device, "dtype": dtype, "merge": merge, "aspect": aspect}
    return score(bundle, source, batch_size=batch_size, threads=threads, **how).evaluation()


def score(
    bundle: Answering,
    source: Source,
    *,
    batch_size: int = 64,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
    merge: int = 0,
    aspect: bool = False,
) -> Scored:
    """Answer for every image of `source`; raises as `evaluate` does."""
    check_classes(bundle, source)
    on = {"device": device, "merge": merge, "aspect": aspect}
    runs = build.engine(bundle, engine, dtype, **on, images=len(source))
    return scored(runs, bundle, source, batch_size=batch_size, threads=threads)


def scored(
    runs: Engine,
    bundle: Answering,
    source: Source,
    *,
    batch_size: int = 64,
    threads: int = 2,
    seen: Callable[[int], None] = lambda count: None,
) -> Scored:
    """Have an engine of the bundle answer for every image of `source`; `seen` hears of each batch.

    Raises as `evaluate` does.
    """
    check_classes(bundle, source)
    found = source_answers(runs, source, batch_size, threads, seen)
    check_finite(found.scores)
    return joined([found], source, bundle.labels)


def evaluation_loader(bundle: Answering, source: Source, batch_size: int, threads: int) -> Loader:
    """Give a loader of labelled images, all of whose classes the bundle knows."""
    check_classes(bundle, source)
    check_counts(batch_size=batch_size, threads=threads)
    return Loader(source, bundle.preprocess, batch_size, threads=threads, max_bad_share=1.0)


def check_classes(bundle: Answering, source: Source, model: str = "this model") -> None:
    """Raise `DataError` for images of a class that the model, called `model`, does not know."""
    if not bundle.labels:
        raise ConfigError(f"{model} has no classes to answer with: it gives features (classes 0)")
    unknown = [name for name in source.classes if name not in bundle.labels]
    if unknown:
        raise DataError(
            f"the images have classes that {model} does not know: {', '.join(unknown[:5])}; "
            f"it knows {', '.join(bundle.labels[:5])}{' ...' * (len(bundle.labels) > 5)}"
        )


def joined(parts: Sequence[Answers], source: Source, names: tuple[str, ...]) -> Scored:
    """Put answers together that are those to all of a source, in its order."""
    read = [part for part in parts if len(part.labels)]
    if not read:
        raise DataError(f"none of the {len(source)} held-out images can be read")
    labels = torch.cat([part.labels for part in read])
    places = np.concatenate([part.places for part in read])
    bad = {index: file for part in parts for index, file in part.bad.items()}
    return Scored(
        torch.cat([part.scores for part in read]).numpy(),
        _places(source, names)[labels].numpy(),
        names,
        places,
        tuple(path_of(source, i) for i in places.tolist()),
        np.concatenate([part.sides for part in read]),
        tuple(bad[index] for index in sorted(bad)),  # threads find them in any order
    )


def measure(
    scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...], bad: tuple[BadFile, ...] = ()
) -> Evaluation:
    """Measure logits, N classes, against labels, N, of the classes `names`."""
    scores = scores.astype(np.float64)
    check_finite(torch.from_numpy(scores))
    probabilities = softmax(scores)
    answers = scores.argmax(axis=1)
    right = answers == labels
    confusion = confusion_matrix(labels, answers, len(names))
    nll = negative_log_likelihood(scores, labels)
    return Evaluation(
        images=len(labels),
        failed=len(bad),
        bad=bad,
        loss=nll,
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), len(right)),
        top5=float((rank_of_label(scores, labels) < 5).mean()),
        nll=nll,
        brier=brier(probabilities, labels),
        ece=calibration_error(probabilities.max(axis=1), right),
        temperature=best_temperature(scores, labels),
        per_class=_per_class(confusion, names),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _places(source: Source, names: tuple[str, ...]) -> Tensor:
    """Give where each class of a source stands among `names`."""
    return torch.tensor([names.index(name) for name in source.classes])


def _per_class(confusion: np.ndarray, names: tuple[str, ...]) -> tuple[ClassResult, ...]:
    hits, count, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = hits / np.maximum(answered, 1)
    recall = hits / np.maximum(count, 1)
    f1 = 2 * hits / np.maximum(count + answered, 1)
    return tuple(
        ClassResult(
            label=name,
            count=int(count[i]),
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
        )
        for i, name in enumerate(names)
    )
