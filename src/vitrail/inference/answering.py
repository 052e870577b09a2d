"""An engine's answers to labelled images, for those who measure them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import Jpeg, open_image
from vitrail.data.inputs import Item
from vitrail.data.loader import Loader
from vitrail.data.preprocess import sides
from vitrail.data.sources import BadFile, Source, path_of
from vitrail.engines.build import Engine
from vitrail.inference.runner import outputs


class Answers(NamedTuple):
    """The answers to a share of a source's images, a row each, and by place what was not read."""

    scores: Tensor  # logits, N classes
    labels: Tensor  # N, by the source's classes
    places: np.ndarray  # N, in the source
    sides: np.ndarray  # N 2: height and width of each image
    bad: dict[int, BadFile]


def answers(engine: Engine, loader: Loader) -> Answers:
    """Give an engine's answers to every sample of a loader: in training, a rank's share of them."""
    scores, labels = [], [torch.empty(0, dtype=torch.long)]
    for batch in loader.once():
        if len(batch.labels):
            scores.append(engine.run(batch.images).cpu())
            labels.append(batch.labels)
    places = np.array([i for i in loader.own().tolist() if i not in loader.bad], np.int64)
    return Answers(_rows(scores), torch.cat(labels), places, loader.sides[places], loader.bad)


def source_answers(
    engine: Engine,
    source: Source,
    batch_size: int,
    threads: int,
    seen: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Give an engine's answers to every image of a source, read as `predict` reads.

    `seen` is told how many are new.
    """
    found_sides = np.zeros((len(source), 2), np.int32)

    def opened(place: int) -> Jpeg | np.ndarray:
        image = open_image(source.read(place))
        found_sides[place] = sides(image)
        return image

    items = (Item(path_of(source, i), partial(opened, i)) for i in range(len(source)))
    how = {"batch_size": batch_size, "threads": threads}
    scores, reasons = [], []
    for found in outputs(engine.run, items, engine.preprocess, engine.device, **how):
        reasons += found.errors
        if len(found.values):
            scores.append(found.values)
            seen(len(found.values))
    bad = {
        place: BadFile(path_of(source, place), reason)
        for place, reason in enumerate(reasons)
        if reason is not None
    }
    places = np.array([i for i in range(len(source)) if i not in bad], np.int64)
    labels = torch.tensor([source.label(i) for i in places.tolist()], dtype=torch.long)
    return Answers(_rows(scores), labels, places, found_sides[places], bad)


def _rows(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, 0)
