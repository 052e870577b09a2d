"""Curves over the epochs as SVG for a page: its colours and its font are the page's own."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 5.0, 3.1  # inches of 72 units; a chart is shown about as large as it is drawn
_MOST_POINTS = 300  # of a line: more cannot be told apart, and make the page heavy
_MOST_DOTS = 40
# Matplotlib writes colours as numbers; each of these stands for one that the style sheet chooses.
_COLOURS = {"ink": "#000001", "rule": "#000002", "train": "#000003", "val": "#000004"}


class Line(NamedTuple):
    """Values over epochs, at least one; `colour` is one of the style sheet's."""

    colour: str
    epochs: Sequence[float]
    values: Sequence[float]


def draw(
    name: str, alt: str, lines: Sequence[Line], *, percent: bool = False, from_zero: bool = True
) -> str:
    """Give an SVG element of these lines; `name` keeps its ids apart from other charts'."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # settings of the reader's own must not change the page
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vitrail"})
        figure = Figure(figsize=_SIZE, dpi=72, facecolor="none")
        axes = figure.add_axes((0.14, 0.16, 0.82, 0.80), facecolor="none")
        for line in lines:
            _plot(axes, line)

        axes.set_xlim(0, max(line.epochs[-1] for line in lines))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch", color=_COLOURS["ink"], fontsize=13)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.0))
        if from_zero:
            axes.set_ylim(bottom=0.0)
        scale, sign = (100, "%") if percent else (1, "")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * scale:g}{sign}"))

        axes.tick_params(length=0, pad=6, labelsize=13, labelcolor=_COLOURS["ink"])
        axes.grid(axis="y", color=_COLOURS["rule"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(_COLOURS["rule"])
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return _for_page(file.getvalue(), name, alt)


def _plot(axes: "Axes", line: Line) -> None:
    step = -(-len(line.values) // _MOST_POINTS)
    few = len(line.values) == 1 or (line.colour == "val" and len(line.values) <= _MOST_DOTS)
    axes.plot(
        line.epochs[::-step],  # from the end, so that the last value is there
        line.values[::-step],
        color=_COLOURS[line.colour],
        linewidth=1.8 if line.colour == "train" else 2.2,
        linestyle=(0, (4, 1.5)) if line.colour == "train" else "-",
        marker="o" if few else None,
        markersize=5,
        clip_on=False,
    )


def _for_page(svg: str, name: str, alt: str) -> str:
    """Make an SVG file an element of an HTML page, with colours that follow the style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    opening = f'<svg {view[0]} role="img" aria-label="{escape(alt)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for word, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{word})")
    return svg
