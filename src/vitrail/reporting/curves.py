"""Curves over the epochs, of one run or of several."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vitrail.reporting.drawing import COLOURS, drawn, in_percent, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 300  # of a line: more cannot be told apart, and make the page heavy
_MOST_DOTS = 40
_DASHES = ((4.0, 1.5), (), (1.2, 1.2), (6.0, 1.5, 1.2, 1.5))  # () is a line without gaps


class Line(NamedTuple):
    """Values over epochs, at least one; `colour` is one of the style sheet's."""

    colour: str
    epochs: Sequence[float]
    values: Sequence[float]
    dashes: tuple[float, ...] = ()
    dotted: bool = False  # a dot for each value, where they are few


def draw(
    name: str, alt: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = True
) -> str:
    """Give an SVG element of these lines; `name` keeps its ids apart from other charts'."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def paint(axes: "Axes") -> None:
        for line in lines:
            _plot(axes, line)
        axes.set_xlim(0, max(line.epochs[-1] for line in lines))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        label(axes, "epoch")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.0))
            axes.yaxis.set_major_formatter(FuncFormatter(in_percent))
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if from_zero:
            axes.set_ylim(bottom=0.0)

    return drawn(name, alt, paint)


def dashes(style: int) -> tuple[float, ...]:
    """Give one of the styles that lines of one colour are told apart by, 0 a whole line."""
    return _DASHES[(style + 1) % len(_DASHES)]


def _plot(axes: "Axes", line: Line) -> None:
    step = -(-len(line.values) // _MOST_POINTS)
    few = len(line.values) == 1 or (line.dotted and len(line.values) <= _MOST_DOTS)
    axes.plot(
        line.epochs[::-step],  # from the end, so that the last value is there
        line.values[::-step],
        color=COLOURS[line.colour],
        linewidth=1.8 if line.dashes else 2.2,
        linestyle=(0, line.dashes) if line.dashes else "-",
        marker="o" if few else None,
        markersize=5,
        clip_on=False,
    )
