"""What a page shows of an evaluation: confusion, classes, trust, and the images to look at."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest, nsmallest
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vitrail.reporting import trust
from vitrail.reporting.album import Album, Look, Place, album
from vitrail.reporting.drawing import Chart
from vitrail.reporting.evaluated import Answer, Evaluated
from vitrail.reporting.thumbnails import address

MOST_MATRIX = 50  # classes; a larger confusion matrix is a picture
MOST_CELLS = 240  # a side of that picture: more cells than can be told apart
_MOST_CLASSES = 1000  # rows of the class table, the worst of more
_MOST_PAIRS, _MOST_PAIRS_ALONE = 10, 30  # beside a matrix, and beside its picture
_WORST, _UNSURE, _DOUBTFUL = 12, 8, 8  # images that are shown
_HIT, _MISS = (47, 111, 208), (208, 58, 85)  # to be seen on light and dark alike


class Pair(NamedTuple):
    """Images of one class that were taken for another; `share` is of all images of `true`."""

    true: str
    answer: str
    images: int
    share: float


class Card(NamedTuple):
    """An image that is worth a look, and what was answered."""

    answer: Answer
    look: Look | None


class Picture(NamedTuple):
    """A confusion matrix as pixels, of which one stands for `group` x `group` classes."""

    address: str
    group: int


class Measured(NamedTuple):
    """An evaluation as a page shows it."""

    found: Mapping[str, Any]
    picture: Picture | None  # None: the matrix is a table
    pairs: list[Pair]
    classes: list[Mapping[str, Any]]
    charts: list[Chart]
    temperature: str
    sizes: str
    worst: list[Card]
    unsure: list[Card]
    doubtful: list[Card]
    doubts: int  # labels in doubt, of which `doubtful` are the worst
    detailed: bool
    has_answers: bool
    notes: tuple[str, ...]


def measured(evaluated: Evaluated, place: Place) -> Measured:
    """Give what there is to show; `place` says where images and model are."""
    found, answers = evaluated.found, evaluated.answers or ()
    many = len(found["per_class"]) > MOST_MATRIX
    worst = nlargest(_WORST, (a for a in answers if not a.right), key=lambda a: a.probability)
    unsure = nsmallest(_UNSURE, answers, key=lambda a: a.margin)
    doubts = found.get("likely_errors", [])
    doubtful = [
        Answer(row["path"], row["label"], row["answered"], row["probability"], 0.0, row["of_label"])
        for row in doubts[:_DOUBTFUL]
    ]
    seen = album({a.path: a.label for a in (*worst, *unsure, *doubtful)}, place)
    return Measured(
        found=found,
        picture=_picture(np.array(found["confusion"])) if many else None,
        pairs=_pairs(found, _MOST_PAIRS_ALONE if many else _MOST_PAIRS),
        classes=_classes(found["per_class"], many),
        charts=list(trust.charts(found)) if evaluated.detailed else [],
        temperature=trust.temperature(found),
        sizes=trust.sizes(found) if evaluated.detailed else "",
        worst=_cards(worst, seen),
        unsure=_cards(unsure, seen),
        doubtful=_cards(doubtful, seen),
        doubts=len(doubts),
        detailed=evaluated.detailed,
        has_answers=evaluated.answers is not None,
        notes=seen.notes,
    )


def _cards(answers: Sequence[Answer], seen: Album) -> list[Card]:
    return [Card(answer, seen.looks.get(answer.path)) for answer in answers]


def _pairs(found: Mapping[str, Any], most: int) -> list[Pair]:
    """Give the pairs of classes that were mistaken most often, the most frequent first."""
    names = [row["label"] for row in found["per_class"]]

    def mistaken() -> Iterator[Pair]:
        for true, row in enumerate(found["confusion"]):
            for answer, count in enumerate(row):
                if count and true != answer:
                    yield Pair(names[true], names[answer], count, count / sum(row))

    return nsmallest(most, mistaken(), key=lambda pair: -pair.images)


def _classes(classes: list[Mapping[str, Any]], many: bool) -> list[Mapping[str, Any]]:
    """Give the rows of the class table: all in their order, or the lowest F1 first of many."""
    if not many:
        return classes
    # A class without images has no F1 that says anything.
    return nsmallest(_MOST_CLASSES, classes, key=lambda c: (not c["count"], c["f1"]))


def _picture(confusion: np.ndarray) -> Picture:
    """Draw a large matrix, rows true, as the share of each row: right blue, wrong red."""
    classes = len(confusion)
    group = -(-classes // MOST_CELLS)
    edges = np.arange(0, classes, group)
    right = np.diag(confusion.diagonal())
    cells = [
        np.add.reduceat(np.add.reduceat(part, edges, axis=0), edges, axis=1)
        for part in (right, confusion - right)
    ]
    images = np.maximum((cells[0] + cells[1]).sum(axis=1, keepdims=True), 1)
    hits, misses = (part / images for part in cells)
    colour = np.where((misses > hits)[..., None], _MISS, _HIT)
    # One image of many in a row must be seen, too.
    share = np.maximum(hits, misses)
    alpha = np.where(share > 0, 64 + 191 * np.sqrt(share), 0)
    pixels = np.dstack([colour, alpha]).round().astype(np.uint8)
    return Picture(address(Image.fromarray(pixels, "RGBA"), "png"), group)
