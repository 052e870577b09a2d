"""The images behind answers, found again where the data lies, and where the model looked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.address import located
from vitrail.data.address import parse as parse_data
from vitrail.data.decode import Jpeg, open_image
from vitrail.data.sources import Source, path_of
from vitrail.data.storage import is_remote
from vitrail.errors import DataError, VitrailError
from vitrail.reporting.thumbnails import Thumbnail, reduced, thumbnail

_WIDEST = 224  # pixels a side of an embedded photo: about 10 kB, and as much with its map
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")


class Look(NamedTuple):
    """An image and, where the model could be asked, the same under the map of its attention."""

    image: Thumbnail
    map: Thumbnail | None = None
    where: str = ""  # the brightest patch: "top left"


class Album(NamedTuple):
    """Images by their path, and in words why some are not shown, or not with a map."""

    looks: Mapping[str, Look]
    notes: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where the images and the model of an evaluation are: DATA, how it is split, and MODEL.

    `source` stands for the held-out images of DATA where they are open already.
    """

    data: str
    options: Mapping[str, Any]
    model: str
    source: Source | None = None


def album(labels: Mapping[str, str], place: Place) -> Album:
    """Show these images, paths to labels; what cannot be opened is said and not an error."""
    if not labels:
        return Album({})
    try:
        source = _source(place)
        pictures, notes = _opened(source, labels)
    except (VitrailError, OSError) as error:
        return Album({}, (f"The images are not shown: {_told(error)}",))
    shown = {
        path: reduced(p.pixels() if isinstance(p, Jpeg) else p, _WIDEST)
        for path, p in pictures.items()
    }
    looks = {path: Look(thumbnail(pixels)) for path, pixels in shown.items()}
    try:
        looks |= _under_maps(shown, pictures, place.model)
    except (VitrailError, OSError, MemoryError) as error:
        notes.append(f"Where the model looked is not shown: {_told(error)}")
    return Album(looks, tuple(notes))


def _told(error: BaseException) -> str:
    """Give an error as the end of a sentence."""
    text = str(error) or type(error).__name__
    return text if text.endswith((".", "?")) else f"{text}."


def _source(place: Place) -> Source:
    if place.source is not None:
        return place.source
    if is_remote(place.data) or parse_data(place.data).kind == "hub":
        raise DataError(f"they are at {place.data}, and a page fetches nothing")
    from vitrail.data.sources import open_data

    return open_data(place.data, **place.options).held_out


def _opened(
    source: Source, labels: Mapping[str, str]
) -> tuple[dict[str, Jpeg | np.ndarray], list[str]]:
    """Open images by their path, and say which of them are not what they were."""
    found: dict[str, Jpeg | np.ndarray] = {}
    for i in range(len(source)):
        path = path_of(source, i)
        if path in labels and source.classes[source.label(i)] == labels[path]:
            try:
                picture = open_image(source.read(i))
                if isinstance(picture, Jpeg):
                    picture.pixels(8)  # damage is told by decoding alone
                found[path] = picture
            except (DataError, OSError):
                continue  # counted below
    lacking = [path for path in labels if path not in found]
    if not lacking:
        return found, []
    return found, [
        f"{len(lacking):,} of the {len(labels):,} images below could not be found again with the "
        f"same label, or not be read, the first of them {lacking[0]}: the data has changed."
    ]


def _under_maps(
    shown: Mapping[str, np.ndarray], pictures: Mapping[str, Jpeg | np.ndarray], model: str
) -> dict[str, Look]:
    """Lay attention rollout over each image, all of them in one pass."""
    from vitrail.data.preprocess import sides
    from vitrail.explaining.pictures import overlay, scale_of
    from vitrail.explaining.rollout import rollouts
    from vitrail.weights.loading import load
    from vitrail.weights.origin import parse

    if (kind := parse(model).kind) in ("hf", "timm"):
        raise DataError(f"{model} is not on this disk, and a page fetches nothing")
    if kind == "preset":
        raise DataError(f"{model} has random weights, whose maps mean nothing")
    bundle = load(model)
    found = {}
    maps = rollouts(bundle, list(pictures.values()))
    for (path, picture), values in zip(pictures.items(), maps, strict=True):
        small, (height, width) = shown[path], sides(picture)
        down, across = small.shape[0] / height, small.shape[1] / width
        top, left, bottom, right = bundle.preprocess.seen(height, width)
        box = top * down, left * across, bottom * down, right * across
        over = overlay(small, values, box, *scale_of(values))
        found[path] = Look(thumbnail(small), thumbnail(over), _brightest(values))
    return found


def _brightest(values: np.ndarray) -> str:
    """Say where the largest value of a map, h w, lies: in which of nine fields."""
    place = np.unravel_index(values.argmax(), values.shape)
    row, column = (int(3 * (at + 0.5) / n) for at, n in zip(place, values.shape, strict=True))
    return " ".join(filter(None, (_ROWS[row], _COLUMNS[column]))) or "centre"


def place_of(found: Mapping[str, Any], model: Path | str | None = None) -> Place:
    """Give where the images and the model of an evaluation are, by what its file says."""
    folder = found.get("started_in")
    data = located(str(found.get("data", "")), folder)
    if model is None:
        model = str(found.get("model", ""))
        here = os.path.expanduser(model)
        there = os.path.join(folder or "", here)
        if os.path.exists(there) and os.path.realpath(there) != os.path.realpath(here):
            model = there
    return Place(data, found.get("data_options", {}), str(model))
