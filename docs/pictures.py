"""Draws the pictures of `docs/learn.md`: `python docs/pictures.py` writes `docs/pictures/*.png`.

The image in them is drawn here too: a window of coloured glass, 224 x 224. The pictures hold
numbers and axis letters but no words, so that the page in every language can show them.
"""

import io
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parent / "pictures"
SIDE, PATCH = 224, 16
GRID = SIDE // PATCH
DPI = 120
CHOSEN = (4, 10)  # down, across: a patch on the rim of the sun
ASKING = (2, 8)  # a patch inside it

PAPER, INK, GREY = "#fbf9f4", "#22252b", "#8b8e96"
MARK = "#e0218a"
Q, K, V = "#2f6db5", "#e2902b", "#3f9a63"

Pixels = NDArray[np.float64]


def window() -> Pixels:
    """Draw a boat under the sun in coloured glass: H W 3, from 0 to 1."""
    fine = 3 * SIDE  # three times too fine, then averaged, so that edges are smooth
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine
    shapes = [
        (np.full((fine, fine), True), "#8fc1e3"),  # sky
        (y > 0.57 - 0.10 * np.sin(3.1 * x + 0.4), "#7fae8d"),  # far hills
        (y > 0.63 - 0.05 * np.cos(5 * x), "#4f8a72"),  # near hills
        (y > 0.68, "#2c6aa6"),  # sea
        (y > 0.86 + 0.012 * np.sin(20 * x), "#214f86"),  # deep sea
        ((x - 0.68) ** 2 + (y - 0.23) ** 2 < 0.125**2, "#f5b52e"),  # sun
        ((x < 0.40) & (x - 0.12 > 0.46 * (0.74 - y)) & (y < 0.74) & (y > 0.13), "#f3ece0"),
        ((x > 0.42) & (x - 0.42 < 0.55 * (y - 0.22)) & (y < 0.74), "#d9503f"),
        (abs(x - 0.41) < 0.010 + 0 * y, "#6a4630"),  # mast
        ((y > 0.76) & (y < 0.86) & (abs(x - 0.42) < 0.33 - 1.1 * (y - 0.76)), "#8a4b2b"),
    ]
    shape = np.zeros((fine, fine), dtype=int)
    for number, (inside, _) in enumerate(shapes):
        shape[inside & ~((number == 8) & ((y < 0.08) | (y > 0.78)))] = number

    rng = np.random.default_rng(4)
    seeds = rng.random((90, 2))
    piece = np.full((fine, fine), -1)
    nearest = np.full((fine, fine), np.inf)
    for number, (seed_y, seed_x) in enumerate(seeds):
        distance = (y - seed_y) ** 2 + (x - seed_x) ** 2
        closer = distance < nearest
        piece[closer], nearest[closer] = number, distance[closer]

    glass = shape * len(seeds) + piece
    shade = rng.uniform(-0.09, 0.09, (len(shapes) * len(seeds), 1))
    colours = np.array([to_rgb(colour) for _, colour in shapes])
    image = np.clip(colours[shape] + shade[glass], 0, 1)
    lead = np.zeros((fine, fine), dtype=bool)
    for step in range(1, 4):
        lead[step:] |= glass[step:] != glass[:-step]
        lead[:, step:] |= glass[:, step:] != glass[:, :-step]
    image[lead] = 0.13, 0.14, 0.17
    return image.reshape(SIDE, 3, SIDE, 3, 3).mean(axis=(1, 3))


def cut(image: Pixels) -> Pixels:
    """Cut the image into its patches: h w s1 s2 C."""
    return rearrange(image, "(h s1) (w s2) c -> h w s1 s2 c", s1=PATCH, s2=PATCH)


def draw_patches(image: Pixels) -> Figure:
    """The image, and its 14 x 14 patches moved apart."""
    figure = plt.figure(figsize=(7.0, 3.4))
    left = figure.add_axes((0.02, 0.05, 0.45, 0.45 * 7.0 / 3.4))
    right = figure.add_axes((0.53, 0.05, 0.45, 0.45 * 7.0 / 3.4))
    left.imshow(image, extent=(0, SIDE, SIDE, 0), interpolation="lanczos")
    gap = 4
    step = PATCH + gap
    for down, row in enumerate(cut(image)):
        for across, patch in enumerate(row):
            edges = (across * step, across * step + PATCH, down * step + PATCH, down * step)
            right.imshow(patch, extent=edges, interpolation="lanczos")
    end = GRID * step - gap
    for axes, size in ((left, SIDE), (right, end)):
        axes.set(xlim=(-0.09 * size, 1.01 * size), ylim=(1.09 * size, -0.01 * size))
        axes.axis("off")
    span(left, (0, SIDE), 1.05 * SIDE, "W = 224")
    span(left, (0, SIDE), -0.05 * SIDE, "H = 224", upright=True)
    span(right, (0, end), 1.05 * end, "w = 14")
    span(right, (0, end), -0.05 * end, "h = 14", upright=True)
    return figure


def draw_flatten(image: Pixels) -> Figure:
    """One patch of 16 x 16 x 3 numbers, and the row that it becomes."""
    patches = cut(image)
    # Three numbers, red, green and blue, are drawn as the one colour that they are.
    rows = rearrange(patches, "h w s1 s2 c -> (h w) (s1 s2) c")
    chosen = CHOSEN[0] * GRID + CHOSEN[1]
    across, high = 912, 560  # the figure in pixels; a row of the matrix is one pixel high
    figure = plt.figure(figsize=(across / DPI, high / DPI))

    def place(x: int, y: int, w: int, h: int) -> Axes:
        axes = figure.add_axes((x / across, 1 - (y + h) / high, w / across, h / high))
        axes.set(xticks=[], yticks=[])
        return axes

    whole, close = place(80, 14, 192, 192), place(364, 14, 192, 192)
    pixels = place(600, 60, 296, 110)
    strip, table = place(80, 254, 768, 26), place(80, 316, 768, 196)

    whole.imshow(image, extent=(0, GRID, GRID, 0), interpolation="lanczos")
    whole.add_patch(Rectangle((CHOSEN[1], CHOSEN[0]), 1, 1, fill=False, ec=MARK, lw=2.2))
    close.imshow(patches[CHOSEN], extent=(0, PATCH, PATCH, 0), interpolation="nearest")
    outline(close, MARK, 2.2)
    for axes, (x, y, text) in (
        (whole, (GRID / 2, 15.2, "14 x 14")),
        (close, (PATCH / 2, 17.4, "16 x 16 x 3")),
    ):
        axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=10)
    for corner in (0, 1):
        start = CHOSEN[1] + 1, CHOSEN[0] + corner
        link(figure, start, whole, (0, PATCH * corner), close)

    # The first pixels of the patch, each as its three numbers, where there is room to see them.
    for index, pixel in enumerate(rearrange(patches[CHOSEN], "s1 s2 c -> (s1 s2) c")[:4]):
        box = Rectangle((3 * index + 0.06, 1.2), 2.88, 0.9, fc=pixel, ec=INK, lw=0.8)
        pixels.add_patch(box)
        for channel, colour in enumerate(("#c0392b", "#2e8b57", "#2c5fa8")):
            at = 3 * index + channel
            pixels.add_patch(Rectangle((at + 0.06, 0), 0.88, 0.9, fc=colour, ec="none"))
            value = f"{pixel[channel]:.2f}"[1:]
            pixels.text(at + 0.5, 0.43, value, ha="center", va="center", color="w", fontsize=7)
    pixels.text(12.2, 0.3, "...", ha="left", va="center", color=INK, fontsize=11)
    pixels.text(0, 2.5, "(s1 s2 c)", color=INK, fontsize=11, family="monospace")
    pixels.set(xlim=(0, 13), ylim=(0, 3))
    for axes in (whole, pixels):
        axes.axis("off")

    strip.imshow(rows[[chosen]], aspect="auto", interpolation="nearest")
    table.imshow(rows, aspect="auto", interpolation="nearest")
    table.add_patch(Rectangle((-0.5, chosen - 2), 256, 4, fill=False, ec=MARK, lw=1.4))
    for side in (-0.5, 255.5):
        link(figure, (side, 0.5), strip, (side, chosen - 2), table)
    outline(strip, MARK, 1.6)
    table.set_xlabel("768 = 16 x 16 x 3", color=INK, fontsize=10)
    table.set_ylabel("N = 196", color=INK, fontsize=10)
    return figure


def draw_qkv() -> Figure:
    """The rows of the fused matrix in the two orders, for two heads of four units."""
    heads, width = 2, 4
    parts = rearrange(np.arange(3 * heads * width), "(qkv k d) -> qkv k d", qkv=3, k=heads)
    ours = parts.ravel()
    theirs = rearrange(parts, "qkv k d -> (k d qkv)")
    figure, axes = plt.subplots(figsize=(7.6, 2.9))
    for top, order in ((1.0, ours), (-1.0, theirs)):
        for place, row in enumerate(order):
            part, head, unit = (int(n) for n in np.argwhere(parts == row)[0])
            colour = (Q, K, V)[part]
            cell = Rectangle((place + 0.04, top - 0.3), 0.92, 0.6, fc=colour, ec="none")
            axes.add_patch(cell)
            text = "qkv"[part]
            axes.text(
                place + 0.5,
                top,
                text,
                ha="center",
                va="center",
                color="w",
                fontsize=10,
                weight="bold",
            )
            label = top + (0.47 if top > 0 else -0.47)
            axes.text(
                place + 0.5,
                label,
                f"{head}{unit}",
                ha="center",
                va="center",
                color=INK,
                fontsize=7.5,
            )
            if top > 0:
                other = int(np.flatnonzero(theirs == row)[0])
                axes.plot(
                    (place + 0.5, other + 0.5), (0.68, -0.68), color=colour, lw=1.2, alpha=0.8
                )
    axes.text(12, 1.85, "(qkv k d)", ha="center", color=INK, fontsize=11, family="monospace")
    axes.text(
        12, -1.85, "(h d qkv)", ha="center", va="top", color=INK, fontsize=11, family="monospace"
    )
    axes.set(xlim=(-0.2, 24.2), ylim=(-2.2, 2.2))
    axes.axis("off")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    return figure


def draw_attention(image: Pixels) -> Figure:
    """A patch, its row of the attention matrix, and the row folded back into the grid.

    q and k are the mean colours of the patches: what attention is before anything is learned.
    """
    colour = cut(image).mean(axis=(2, 3)).reshape(-1, 3)
    colour = (colour - colour.mean(axis=0)) / colour.std(axis=0)
    colour = 3 * colour / np.linalg.norm(colour, axis=1, keepdims=True)
    weights = np.exp(colour @ colour.T / 3**0.5)
    weights /= weights.sum(axis=1, keepdims=True)
    chosen = ASKING[0] * GRID + ASKING[1]
    figure = plt.figure(figsize=(7.6, 3.5))
    left = figure.add_axes((0.015, 0.22, 0.30, 0.65))
    middle = figure.add_axes((0.35, 0.22, 0.30, 0.65))
    right = figure.add_axes((0.685, 0.22, 0.30, 0.65))
    strip = figure.add_axes((0.35, 0.07, 0.635, 0.05))
    top = weights[chosen].max()
    left.imshow(image, extent=(0, GRID, GRID, 0), interpolation="lanczos")
    middle.imshow(weights, cmap="magma", vmax=top, interpolation="nearest")
    right.imshow(weights[chosen].reshape(GRID, GRID), cmap="magma", vmin=0, vmax=top)
    strip.imshow(weights[[chosen]], cmap="magma", vmin=0, vmax=top, aspect="auto")
    left.add_patch(Rectangle((ASKING[1], ASKING[0]), 1, 1, fill=False, ec=MARK, lw=2.2))
    middle.add_patch(Rectangle((-0.5, chosen - 1.5), 196, 3, fill=False, ec=MARK, lw=1.4))
    outline(strip, MARK, 1.4)
    outline(right, MARK, 1.4)
    for axes, text in ((left, "14 x 14"), (middle, "196 x 196"), (right, "14 x 14")):
        axes.set_title(text, color=INK, fontsize=10)
    for axes in (left, middle, right, strip):
        axes.set(xticks=[], yticks=[])
    figure.text(0.335, 0.094, "sum = 1", ha="right", va="center", color=INK, fontsize=10)
    return figure


def draw_pooling() -> Figure:
    """N rows of D numbers become one row: the axis n goes away."""
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(9, 24)) + np.linspace(-1.2, 1.2, 24) * np.sin(np.arange(24))
    figure = plt.figure(figsize=(7.6, 3.0))
    table = figure.add_axes((0.07, 0.13, 0.50, 0.74))
    row = figure.add_axes((0.07 + 0.50 + 0.12, 0.13 + 0.37 - 0.041, 0.29, 0.082))
    table.imshow(tokens, cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto")
    row.imshow(tokens.mean(axis=0)[None], cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto")
    for edge in range(1, 9):
        table.axhline(edge - 0.5, color=PAPER, lw=2.5)
    first = Rectangle((-0.5, -0.5), 24, 0.95, fill=False, ec=MARK, lw=2.2, clip_on=False, zorder=5)
    table.add_patch(first)
    row.add_patch(Rectangle((-0.5, -0.5), 24, 1, fill=False, ec=GREY, lw=1, clip_on=False))
    table.text(-1.0, 0, "cls", ha="right", va="center", color=MARK, fontsize=10, clip_on=False)
    table.text(-1.0, 4.5, "n", ha="right", va="center", color=INK, fontsize=12)
    for axes, where in ((table, 9.3), (row, 1.3)):
        axes.text(11.5, where, "d", ha="center", va="center", color=INK, fontsize=12)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.add_artist(
        ConnectionPatch(
            (0.595, 0.5),
            (0.67, 0.5),
            figure.transFigure,
            figure.transFigure,
            arrowstyle="-|>",
            mutation_scale=16,
            color=INK,
            lw=1.6,
        )
    )
    figure.text(
        0.69 + 0.145,
        0.72,
        "b n d -> b d",
        ha="center",
        color=INK,
        fontsize=11,
        family="monospace",
    )
    return figure


def link(
    figure: Figure, start: tuple[float, float], one: Axes, end: tuple[float, float], other: Axes
) -> None:
    """Draw a line from a place in one picture to a place in another."""
    line = ConnectionPatch(start, end, one.transData, other.transData, color=MARK, lw=1)
    figure.add_artist(line)


def span(
    axes: Axes, ends: tuple[float, float], at: float, text: str, *, upright: bool = False
) -> None:
    """Draw a measure from end to end, its text in the middle."""
    start, end = ((at, ends[0]), (at, ends[1])) if upright else ((ends[0], at), (ends[1], at))
    arrow = {"arrowstyle": "<->", "color": GREY, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", start, end, arrowprops=arrow)
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    axes.text(
        *middle,
        text,
        ha="center",
        va="center",
        rotation=90 if upright else 0,
        color=INK,
        fontsize=10,
        bbox={"fc": PAPER, "ec": "none", "pad": 2},
    )


def outline(axes: Axes, colour: str, width: float) -> None:
    """Give the axes a frame."""
    axes.spines[:].set(color=colour, linewidth=width)


def save(figure: Figure, name: str, colours: int) -> Path:
    """Write the figure in few colours, which the eye does not miss and a page loads at once."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor=PAPER)
    plt.close(figure)
    path = FOLDER / f"{name}.png"
    image = Image.open(drawn).convert("RGB")
    image = image.quantize(colours, kmeans=1, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    return path


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    image = window()
    for name, figure in {
        "patches": draw_patches(image),
        "flatten": draw_flatten(image),
        "qkv": draw_qkv(),
        "attention": draw_attention(image),
        "pooling": draw_pooling(),
    }.items():
        path = save(figure, name, colours=80 if name == "patches" else 256)
        print(f"{path.relative_to(FOLDER.parent)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
