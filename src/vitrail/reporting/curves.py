"""Curves over the epochs, of one run or of several."""

from collections.abc import Sequence
from typing import NamedTuple

from vitrail.reporting.drawing import Axis, Drawing, axis, in_percent

_MOST_POINTS = 300  # of a line: more cannot be told apart, and make the page heavy
_MOST_DOTS = 40
_WHOLE = 3  # epochs from which parts of one have no word of their own
_DASHES = ((4.0, 1.5), (), (1.2, 1.2), (6.0, 1.5, 1.2, 1.5))  # () is a line without gaps


class Line(NamedTuple):
    """Values over epochs, at least one; `colour` is one of the style sheet's."""

    colour: str
    epochs: Sequence[float]
    values: Sequence[float]
    dashes: tuple[float, ...] = ()
    dotted: bool = False  # a dot for each value, where they are few


def draw(alt: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = True) -> str:
    """Give an SVG element of these lines."""
    last = max(line.epochs[-1] for line in lines)
    epochs = axis(0, last, 6, whole=last >= _WHOLE)
    drawing = Drawing(epochs, _values(lines, percent, from_zero))
    for line in lines:
        _plot(drawing, line)
    return drawing.svg(alt, "epoch")


def _values(lines: Sequence[Line], percent: bool, from_zero: bool) -> Axis:
    """Give an axis that has room for all values, and a share's none beyond 0 and 1."""
    values = [value for line in lines for value in line.values]
    low, high = 0.0 if from_zero else min(values), max(values)
    room = (high - low or abs(high) or 1) / 20
    low, high = low - room * (not from_zero), high + room
    if percent:
        return axis(max(low, 0.0), min(high, 1.0), text=in_percent)
    return axis(low, high)


def _plot(drawing: Drawing, line: Line) -> None:
    step = -(-len(line.values) // _MOST_POINTS)
    x, y = line.epochs[::-step], line.values[::-step]  # from the end, so that the last one is there
    drawing.line(x, y, line.colour, width=1.8 if line.dashes else 2.2, dashes=line.dashes)
    if len(line.values) == 1 or (line.dotted and len(line.values) <= _MOST_DOTS):
        drawing.dots(x, y, line.colour, 2.5)


def dashes(style: int) -> tuple[float, ...]:
    """Give one of the styles that lines of one colour are told apart by, 0 a whole line."""
    return _DASHES[(style + 1) % len(_DASHES)]
