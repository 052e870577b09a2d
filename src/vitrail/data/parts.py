"""Which images of a data set are taken: those held out, those of one split, or all of them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vitrail.data.listing import Images, Names
from vitrail.data.sources import Source, open_data, path_of, whole
from vitrail.errors import DataError

Part = Literal["held-out", "train", "val", "test", "all"]


def part(data: str, which: Part = "held-out", **how: Any) -> tuple[Source, tuple[str, ...]]:
    """Give some images of a DATA address, and notes for the user; `how` is as for `open_data`.

    `held-out` is what training on this data would be measured on: val, else test, else a share of
    each class. Any other part is given as it is, though it have one class alone. Raises `DataError`
    for a split that the data has not.
    """
    if which == "held-out":
        splits = open_data(data, **how)
        if splits.names:
            return splits.held_out, splits.notes
        held, images = len(splits.held_out), sum(map(len, splits.parts().values()))
        note = (
            f"{data} has no split of its own: {held:,} of its {images:,} images, held out by "
            "class as in training, are taken; --split all takes all"
        )
        return splits.held_out, (*splits.notes, note)
    columns = {name: how[name] for name in ("image_column", "label_column") if name in how}
    parts, notes = whole(data, **columns)
    parts = {name: images for name, images in parts.items() if len(images)}
    if not parts:
        raise DataError(f'"{data}" holds no images')
    if which == "all":
        return joined(list(parts.values())), notes
    if list(parts) == [""]:
        parts = open_data(data, **how).parts()
    if which not in parts:
        raise DataError(f'"{data}" has no split {which}, only {" and ".join(parts)}')
    return parts[which], notes


def joined(sources: Sequence[Source]) -> Source:
    """Give several sources as one; their classes go by name."""
    if len(sources) == 1:
        return sources[0]
    classes = tuple(dict.fromkeys(name for source in sources for name in source.classes))
    labels = [
        classes.index(source.classes[source.label(i)])
        for source in sources
        for i in range(len(source))
    ]
    starts = np.cumsum([0, *map(len, sources)])

    def read_row(row: int) -> bytes:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        return sources[place].read(row - int(starts[place]))

    names = Names(path_of(source, i) for source in sources for i in range(len(source)))
    return Images(names, np.array(labels, np.int32), classes, read_row)
