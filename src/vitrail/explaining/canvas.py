"""A page of pictures with lines beneath them, drawn pixel for pixel as PNG or SVG."""

import io
from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vitrail.data.listing import one_line
from vitrail.explaining.fonts import Fonts, fonts_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Format = Literal["png", "svg"]
Box = tuple[float, float, float, float]  # top, left, bottom, right, in pixels

_DPI = 100
_WIDEST, _NARROWEST = 1200, 560  # pixels of a page; wider rows are broken
_SLOT, _LETTER = 300, 7.4  # the most room that lines take beneath a picture, and that of a letter
_MARGIN, _GAP, _LINE, _STRIP = 24, 18, 17, 72  # pixels
_INK, _PALE, _FRAME, _MARK = "#1b1f24", "#59636e", "#d1d9e0", "#ff2bd1"


class Panel(NamedTuple):
    """One picture: pixels as they are shown, H W 3 uint8, and lines beneath.

    `boxes` are outlined; `cells` (h, w) draws a grid; `strip`, n 3 in 0 .. 1, is a scale of colours
    that stands before the first line.
    """

    pixels: np.ndarray
    lines: Sequence[str]
    boxes: Sequence[Box] = ()
    cells: tuple[int, int] | None = None
    strip: np.ndarray | None = None

    @property
    def slot(self) -> int:
        """Its width on the page."""
        indent = 0 if self.strip is None else _STRIP + 8
        longest = indent + _LETTER * max(map(len, self.lines))
        return max(self.pixels.shape[1], round(min(longest, _SLOT)))


def page(rows: Sequence[Sequence[Panel]], title: str, about: str, format: Format) -> bytes:
    """Draw rows of pictures beneath a title and a few words about them."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [broken for row in rows for broken in _broken(row)]
    width = max(*(_width(row) for row in rows), _NARROWEST)
    head = wrap(one_line(about), width // 7)
    top = _MARGIN + 42 + _LINE * len(head)
    height = top + sum(map(_height, rows)) + _MARGIN - _GAP
    texts = [title, about, "…", *(line for row in rows for panel in row for line in panel.lines)]
    fonts = fonts_for("".join(texts))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # settings of the reader's own must not change the picture
        matplotlib.rcParams["font.family"] = fonts.families
        matplotlib.rcParams["svg.hashsalt"] = "vitrail"
        matplotlib.rcParams["image.composite_image"] = False
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        # One pair of axes in pixels, from the top left: a picture stands where its numbers say.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        write = _writer(axes, fonts)
        write(one_line(title), _MARGIN, _MARGIN + 16, 20, width - 2 * _MARGIN, _INK)
        for i, line in enumerate(head):
            write(line, _MARGIN, _MARGIN + 39 + _LINE * i, 13, width - 2 * _MARGIN, _PALE)
        for row in rows:
            x = _MARGIN
            for panel in row:
                _draw(axes, write, panel, x, top)
                x += panel.slot + _GAP
            top += _height(row)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        file = io.BytesIO()
        without: dict[str, Any] = {"metadata": {"Date": None}} if format == "svg" else {}
        figure.savefig(file, format=format, dpi=_DPI, **without)
    return file.getvalue()


def _broken(row: Sequence[Panel]) -> Iterator[list[Panel]]:
    """Break a row that is wider than a page."""
    line: list[Panel] = []
    for panel in row:
        if line and _width([*line, panel]) > _WIDEST:
            yield line
            line = []
        line.append(panel)
    yield line


def _width(row: Sequence[Panel]) -> int:
    return 2 * _MARGIN + sum(panel.slot for panel in row) + _GAP * (len(row) - 1)


def _height(row: Sequence[Panel]) -> int:
    return max(len(p.pixels) + _LINE * len(p.lines) for p in row) + _GAP


def _draw(axes: "Axes", write: Callable[..., None], panel: Panel, x: int, top: int) -> None:
    from matplotlib.patches import Rectangle

    tall, wide = panel.pixels.shape[:2]
    base = top + tall
    axes.imshow(panel.pixels, interpolation="nearest", extent=(x, x + wide, base, top))
    # Behind the image, and a pixel larger: a white one is seen, too.
    axes.add_patch(Rectangle((x - 1, top - 1), wide + 2, tall + 2, fc=_FRAME, zorder=-1))
    if panel.cells is not None:
        h, w = panel.cells
        line = {"color": "#8a8f98", "alpha": 0.7, "linewidth": 0.6}
        axes.hlines([top + tall * i / h for i in range(1, h)], x, x + wide, **line)
        axes.vlines([x + wide * i / w for i in range(1, w)], top, base, **line)
    for first, left, last, right in panel.boxes:
        corner, size = (x + left, top + first), (right - left, last - first)
        axes.add_patch(Rectangle(corner, *size, fill=False, ec=_MARK, linewidth=1.6, clip_on=True))
    indent = 0
    if panel.strip is not None:
        indent = _STRIP + 8
        extent = (x, x + _STRIP, base + _LINE - 3, base + _LINE - 12)
        axes.imshow(panel.strip[None], interpolation="nearest", extent=extent)
    for n, text in enumerate(panel.lines):
        more = 0 if n else indent
        write(text, x + more, base + _LINE * (n + 1) - 2, 13, panel.slot - more, _INK)


def _writer(axes: "Axes", fonts: Fonts) -> Callable[..., None]:
    """Give what writes a line of `size` pixels on its base y, cut where wider than `room`."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer = RendererAgg(1, 1, _DPI)

    def write(text: str, x: float, y: float, size: int, room: float, colour: str) -> None:
        text = fonts.spelt(text)
        font = FontProperties(size=size * 72 / _DPI)
        end = len(text)
        while end and _wide(renderer, cut := _cut(text, end), font) > room:
            end -= 1
        cut = _cut(text, end)
        axes.text(x, y, cut, font=font, color=colour, va="baseline", parse_math=False)

    return write


def _cut(text: str, end: int) -> str:
    return text[:end].rstrip() + "…" * (end < len(text))


def _wide(renderer: Any, text: str, font: Any) -> float:
    return renderer.get_text_width_height_descent(text, font, ismath=False)[0]
