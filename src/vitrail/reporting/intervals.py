"""Shares with their intervals, one beneath the other, each with its name."""

from collections.abc import Sequence
from typing import NamedTuple
from unicodedata import east_asian_width

from vitrail.reporting.drawing import Axis, Drawing, axis, in_percent

_LETTER = 7.4  # units, of a name
_LONGEST = 16  # letters; Chinese ones and their like count twice
_ROW, _AROUND = 24.5, 64.0  # units


class Row(NamedTuple):
    """A share and its 95 % interval."""

    name: str
    share: float
    interval: tuple[float, float]


def draw(alt: str, rows: Sequence[Row], below: str) -> str:
    """Give an SVG element of rows, the first on top; `below` says what the shares are of."""
    names = [_short(row.name) for row in rows]
    low, high = min(row.interval[0] for row in rows), max(row.interval[1] for row in rows)
    room = (high - low or 1) / 20
    x = axis(max(low - room, 0.0), min(high + room, 1.0), 4, in_percent)
    places = range(len(rows), 0, -1)
    y = Axis(0.4, len(rows) + 0.6, list(zip(places, names, strict=True)))
    left = 16 + _LETTER * max(map(_letters, names))
    drawing = Drawing(x, y, left=left, tall=_AROUND + _ROW * len(rows))
    for place, row in zip(places, rows, strict=True):
        drawing.line(row.interval, (place, place), "val", width=2)
        drawing.dots([row.share], [place], "val", 3.5)
    return drawing.svg(alt, below, rows=True)


def _short(name: str) -> str:
    """Cut a name where it would take too much of a chart."""
    if _letters(name) <= _LONGEST:
        return name
    while _letters(name) >= _LONGEST:
        name = name[:-1]
    return f"{name}…"


def _letters(name: str) -> int:
    return len(name) + sum(east_asian_width(letter) in "WF" for letter in name)
