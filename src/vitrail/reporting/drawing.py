"""A chart as SVG for a page: its colours and its font are the page's own."""

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNS = 6  # colours that runs side by side are told apart by; a line's style tells more
# Matplotlib writes colours as numbers; each of these stands for one that the style sheet chooses.
_NAMES = ("ink", "rule", "train", "val", "soft", *(f"run{i}" for i in range(RUNS)))
COLOURS = {name: f"#0000{number:02x}" for number, name in enumerate(_NAMES, 1)}
_SIZE = 5.0, 3.1  # inches of 72 units; a chart is shown about as large as it is drawn


class Chart(NamedTuple):
    """A figure of a page: an SVG element, and what a reader should take from it."""

    title: str
    svg: str
    note: str


def drawn(name: str, alt: str, paint: Callable[["Axes"], None], *, height: float = 0.0) -> str:
    """Give an SVG element that `paint` fills; `name` keeps its ids apart from other charts'.

    `height` is in inches, for a chart whose lines are counted.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # settings of the reader's own must not change the page
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vitrail"})
        figure = Figure(figsize=(_SIZE[0], height or _SIZE[1]), dpi=72, facecolor="none")
        axes = figure.add_axes((0.14, 0.16, 0.82, 0.80), facecolor="none")
        axes.tick_params(length=0, pad=6, labelsize=13, labelcolor=COLOURS["ink"])
        axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["rule"])
        paint(axes)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return _for_page(file.getvalue(), name, alt)


def label(axes: "Axes", text: str) -> None:
    """Say beneath a chart what its horizontal axis is."""
    axes.set_xlabel(text, color=COLOURS["ink"], fontsize=13)


def in_percent(value: float, _: int = 0) -> str:
    """Write a tick of a fraction."""
    return f"{100 * value:g}%"


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
    for word, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{word})")
    return svg
