"""How good the answers are: accuracy with its interval, calibration, classes, confusion."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.loader import Loader
from vitrail.data.preprocess import Preprocess
from vitrail.data.sources import BadFile, Source
from vitrail.errors import ConfigError, DataError, NonFiniteError
from vitrail.inference.runner import logits, pick_device
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

_BINS = 15  # of the reliability diagram (Guo et al. 2017, section 2)


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

    def to_json(self) -> dict[str, Any]:
        """Give plain values, in the form of `vitrail eval --json`."""
        return {name: value for name, value in asdict(self).items() if name != "bad"}


def evaluate(
    bundle: Bundle,
    source: Source,
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 2,
) -> Evaluation:
    """Answer for every image of `source` and measure the answers.

    Labels go by class name: raises `DataError` where the source has a class that the bundle
    cannot answer.
    """
    loader = Loader(source, bundle.preprocess, batch_size, threads=threads, max_bad_share=1.0)
    if not bundle.labels:
        raise ConfigError("this model has no classes to answer with: it gives features (classes 0)")
    unknown = [name for name in source.classes if name not in bundle.labels]
    if unknown:
        raise DataError(
            f"the images have classes that this model does not know: {', '.join(unknown[:5])}; "
            f"it knows {', '.join(bundle.labels[:5])}{' ...' * (len(bundle.labels) > 5)}"
        )
    bundle.model.to(pick_device(device))
    return evaluate_loader(bundle.model, bundle.preprocess, loader, bundle.labels, dtype)


def evaluate_loader(
    model: ViT, preprocess: Preprocess, loader: Loader, names: tuple[str, ...], dtype: str
) -> Evaluation:
    """Measure a model on every sample of a loader; its classes are found among `names`."""
    return measured([answers(model, preprocess, loader, dtype)], loader.source, names)


class Answers(NamedTuple):
    """Logits, N classes, labels, N, by the source's classes, and by place what was not read."""

    scores: Tensor
    labels: Tensor
    bad: dict[int, BadFile]


def answers(model: ViT, preprocess: Preprocess, loader: Loader, dtype: str) -> Answers:
    """Give a model's answers to every sample of a loader."""
    batches = list(logits(model, preprocess, loader, dtype))
    none = (torch.empty(0, model.config.classes), torch.empty(0, dtype=torch.long))
    scores, labels = map(torch.cat, zip(*batches or [none], strict=True))
    return Answers(scores, labels, loader.bad)


def measured(parts: Sequence[Answers], source: Source, names: tuple[str, ...]) -> Evaluation:
    """Measure answers that together are those to all of a source, in its order."""
    labels = torch.cat([part.labels for part in parts])
    if not len(labels):
        raise DataError(f"none of the {len(source)} held-out images can be read")
    place = torch.tensor([names.index(name) for name in source.classes])
    scores = torch.cat([part.scores for part in parts])
    bad = {index: file for part in parts for index, file in part.bad.items()}
    return measure(scores.numpy(), place[labels].numpy(), names, bad=tuple(bad.values()))


def measure(
    scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...], bad: tuple[BadFile, ...] = ()
) -> Evaluation:
    """Measure logits, N classes, against labels, N, of the classes `names`."""
    scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        raise NonFiniteError("the model's answers are not finite numbers: its weights are broken")
    probabilities = softmax(scores)
    answers = scores.argmax(axis=1)
    right = answers == labels
    rank = (scores > np.take_along_axis(scores, labels[:, None], axis=1)).sum(axis=1)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    one_hot = np.eye(len(names))[labels]
    nll = negative_log_likelihood(scores, labels)
    return Evaluation(
        images=len(labels),
        failed=len(bad),
        bad=bad,
        loss=nll,
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), len(right)),
        top5=float((rank < 5).mean()),
        nll=nll,
        brier=float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        ece=calibration_error(probabilities.max(axis=1), right),
        temperature=best_temperature(scores, labels),
        per_class=_per_class(confusion, names),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Give probabilities, N classes, of logits."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def negative_log_likelihood(scores: np.ndarray, labels: np.ndarray) -> float:
    """Give the mean cross-entropy, in nats."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    of_label = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - of_label).mean())


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Give the 95 % interval of a share (Wilson 1927): it holds near 0 and 1 too."""
    share, slack = right / count, z * z / count
    centre = (share + slack / 2) / (1 + slack)
    half = z * np.sqrt(share * (1 - share) / count + slack / (4 * count)) / (1 + slack)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Give the mean gap between confidence and accuracy over equal bins (Guo et al. 2017)."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(_BINS)]
    return float(sum(gaps) / len(right))


def best_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Give the divisor of the logits, 0.05 to 20, with the least cross-entropy on these images."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(scores / np.exp(log_t), labels),
        bounds=(np.log(0.05), np.log(20.0)),
        method="bounded",
    )
    return float(np.exp(found.x))


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
