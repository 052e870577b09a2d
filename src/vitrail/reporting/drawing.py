"""A chart as SVG, in the letters and colours of the page that it stands in."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

RUNS = 6  # colours that runs side by side are told apart by; a line's style tells more
TALL = 223.0  # units; a chart is as wide for all, and shown about as large as it is drawn
_WIDE = 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 9.0, 36.0  # around the field that the axes span
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Chart(NamedTuple):
    """A figure of a page: an SVG element, and what a reader should take from it."""

    title: str
    svg: str
    note: str


class Axis(NamedTuple):
    """The values at both ends, and the words along it with their places."""

    low: float
    high: float
    words: Sequence[tuple[float, str]]


def in_percent(value: float) -> str:
    """Write a fraction."""
    return f"{100 * value:g}%"


def axis(
    low: float,
    high: float,
    most: int = 5,
    text: Callable[[float], str] = "{:g}".format,
    *,
    whole: bool = False,
) -> Axis:
    """Give an axis with words at round values, at most `most` steps apart; only `whole` ones."""
    power = 10.0 ** floor(log10((high - low) / most))
    steps = (power * step for step in _STEPS if not whole or power * step % 1 == 0)
    step = next(step for step in steps if step * most >= (high - low) * (1 - 1e-9))
    places = range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
    return Axis(low, high, [(place * step, text(place * step)) for place in places])


class Drawing:
    """Marks on two axes, placed by their values; a colour is the name of one in the style sheet."""

    def __init__(self, x: Axis, y: Axis, *, left: float = _LEFT, tall: float = TALL) -> None:
        self.x, self.y, self.left, self.floor = x, y, left, tall - _BOTTOM
        self.tall = tall
        self.marks: list[str] = []

    def across(self, value: float) -> float:
        """Give the place of a value on the horizontal axis."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return self.left + share * (_WIDE - _RIGHT - self.left)

    def down(self, value: float) -> float:
        """Give the place of a value on the vertical axis."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return self.floor - share * (self.floor - _TOP)

    def line(
        self,
        x: Iterable[float],
        y: Iterable[float],
        colour: str,
        *,
        width: float = 2.2,
        dashes: Sequence[float] = (),
    ) -> None:
        """Draw a line through points; `dashes` are in its widths."""
        points = " ".join(
            f"{self.across(a):.1f},{self.down(b):.1f}" for a, b in zip(x, y, strict=True)
        )
        dash = " ".join(f"{width * part:.1f}" for part in dashes)
        more = f' stroke-dasharray="{dash}"' * bool(dash)
        self.marks.append(
            f'<polyline points="{points}" stroke="var(--{colour})" stroke-width="{width}"{more}/>'
        )

    def dots(self, x: Iterable[float], y: Iterable[float], colour: str, radius: float = 3) -> None:
        """Draw a dot at each point."""
        self.marks += [
            f'<circle cx="{self.across(a):.1f}" cy="{self.down(b):.1f}" r="{radius}" '
            f'fill="var(--{colour})"/>'
            for a, b in zip(x, y, strict=True)
        ]

    def bar(self, left: float, right: float, value: float, colour: str) -> None:
        """Draw a bar from the floor to a value, between two values of the horizontal axis."""
        x, y = self.across(left), self.down(value)
        size = f'width="{self.across(right) - x:.1f}" height="{self.floor - y:.1f}"'
        self.marks.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="var(--{colour})"/>')

    def svg(self, alt: str, below: str, *, rows: bool = False) -> str:
        """Give the element; `alt` says what it shows, `below` what its horizontal axis is.

        Fine lines lead from the words to the marks: from those beneath the chart where the vertical
        axis has `rows`, else from those beside it.
        """
        right, foot = _WIDE - _RIGHT, self.floor + 16
        back = [f'<path class="rule" d="M{self.left:g} {self.floor:g}H{right:g}"/>']
        for value, word in self.x.words:
            at = f"{self.across(value):.1f}"
            if rows:
                back.append(f'<path class="rule" d="M{at} {self.floor:g}V{_TOP:g}"/>')
            back.append(f'<text x="{at}" y="{foot:g}" class="middle">{escape(word)}</text>')
        for value, word in self.y.words:
            at = self.down(value)
            if not rows:
                back.append(f'<path class="rule" d="M{self.left:g} {at:.1f}H{right:g}"/>')
            place = f'x="{self.left - 6:g}" y="{at + 4.5:.1f}"'
            back.append(f'<text {place} class="end">{escape(word)}</text>')
        middle = f'x="{(self.left + right) / 2:g}" y="{foot + 17:g}"'
        back.append(f'<text {middle} class="middle">{escape(below)}</text>')
        view = f'viewBox="0 0 {_WIDE:g} {self.tall:g}"'
        inside = "\n".join([*back, *self.marks])
        return f'<svg {view} role="img" aria-label="{escape(alt)}">\n{inside}\n</svg>'
