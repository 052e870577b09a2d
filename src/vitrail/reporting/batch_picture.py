"""A batch of images as one picture: a grid, each image with its class beneath."""

import io
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.data.listing import one_line
from vitrail.errors import ConfigError
from vitrail.explaining.fonts import fonts_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
_COLUMNS = 8
_DPI = 100
_SMALL, _LARGE = 160, 256  # pixels: smaller images are enlarged to about the one, larger cut down
_MARGIN, _GAP, _LINE = 24, 14, 17  # pixels
_INK, _PALE, _FRAME = "#1b1f24", "#59636e", "#d1d9e0"


def check_suffix(file: str) -> str:
    """Give the suffix of a picture's file; raises `ConfigError` for one that cannot be drawn."""
    name = file.rpartition("/")[2].lower()
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    if not suffix:
        raise ConfigError(
            f'"{file}" ends in no format that a picture can have; wanted is one of '
            f"{' '.join(SUFFIXES)}"
        )
    return suffix


def captions(targets: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """Give the lines beneath each image: its class, or of a mixture each with its share."""
    lines = []
    for shares in targets:
        order = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c] >= 0.005]
        names = [one_line(classes[c]) for c in order]
        if len(names) > 1:  # the share first: a long name is cut at its end
            names = [f"{shares[c]:.0%} {name}" for name, c in zip(names, order, strict=True)]
        lines.append(names)
    return lines


def draw(
    images: np.ndarray, captions: Sequence[Sequence[str]], title: str, about: str, suffix: str
) -> bytes:
    """Draw uint8 images, B C H W, in a grid, as a file of the format that `suffix` names."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    pixels = [_sized(image) for image in images]
    tall, wide = pixels[0].shape[:2]
    columns, rows = min(_COLUMNS, len(pixels)), -(-len(pixels) // _COLUMNS)
    width = max(2 * _MARGIN + columns * wide + (columns - 1) * _GAP, 560)
    head = fill(one_line(about), width // 7).splitlines()
    top = _MARGIN + _LINE * len(head) + 42
    row = tall + _LINE * max(map(len, captions)) + _GAP + 4
    height = top + rows * row - _GAP + _MARGIN
    fonts = fonts_for("".join([title, about, "…", *(line for lines in captions for line in lines)]))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # settings of the reader's own must not change the picture
        matplotlib.rcParams["font.family"] = fonts.families
        matplotlib.rcParams["svg.hashsalt"] = "vitrail"
        matplotlib.rcParams["image.composite_image"] = False
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        # One pair of axes in pixels, from the top left: an image stands where its numbers say.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()

        whole = width - 2 * _MARGIN
        _write(axes, fonts.spelt(one_line(title)), _MARGIN, _MARGIN + 16, 20, whole, _INK)
        for i, line in enumerate(head):
            _write(axes, fonts.spelt(line), _MARGIN, _MARGIN + 39 + _LINE * i, 13, whole, _PALE)
        for i, (image, lines) in enumerate(zip(pixels, captions, strict=True)):
            x, y = _MARGIN + i % columns * (wide + _GAP), top + i // columns * row + tall
            axes.imshow(image, interpolation="nearest", extent=(x, x + wide, y, y - tall))
            # Behind the image, and a pixel larger: a white one is seen, too.
            axes.add_patch(Rectangle((x - 1, y + 1), wide + 2, -tall - 2, fc=_FRAME, zorder=-1))
            for n, line in enumerate(lines):
                _write(axes, fonts.spelt(line), x, y + _LINE * (n + 1) - 2, 13, wide, _INK)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        return _file(figure, suffix)


def _sized(image: np.ndarray) -> np.ndarray:
    """Give H W 3 pixels as they are shown: small images by whole pixels, so that each is seen."""
    from PIL import Image

    pixels = np.broadcast_to(np.moveaxis(image, 0, -1), (*image.shape[1:], 3))
    side = max(pixels.shape[:2])
    if side > _LARGE:
        tall, wide = (max(round(n * _LARGE / side), 1) for n in pixels.shape[:2])
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((wide, tall)))
    times = max(round(_SMALL / side), 1)
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _write(
    axes: "Axes", text: str, x: float, y: float, size: int, room: float, colour: str
) -> None:
    """Write a line of `size` pixels, cut where it would be wider than `room`; y is its base."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer = RendererAgg(1, 1, _DPI)
    font = FontProperties(size=size * 72 / _DPI)

    def wide(text: str) -> bool:
        return renderer.get_text_width_height_descent(text, font, ismath=False)[0] > room

    end = len(text)
    while end and wide(text[:end].rstrip() + "…" * (end < len(text))):
        end -= 1
    text = text[:end].rstrip() + "…" * (end < len(text))
    axes.text(x, y, text, font=font, color=colour, va="baseline", parse_math=False)


def _file(figure: "Figure", suffix: str) -> bytes:
    """Write the picture; the same one gives the same bytes."""
    file = io.BytesIO()
    without = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    more = {".jpg": {"pil_kwargs": {"quality": 95}}, ".jpeg": {"pil_kwargs": {"quality": 95}}}
    how: dict[str, Any] = {"metadata": without.get(suffix), **more.get(suffix, {})}
    figure.savefig(file, format=suffix[1:], dpi=_DPI, **how)
    return file.getvalue()
