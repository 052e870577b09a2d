"""An explanation as a picture: the image, its patches, the map where it belongs, every head.

A map lies over the part of the image that the model saw, one colour for each patch, from dark (0)
to light (its largest value) in steps that look equally large (inferno). Where it goes below 0, as
occlusion's can, 0 is dark, above it is red and below it blue (berlin).
"""

from collections.abc import Iterator

import numpy as np

from vitrail.explaining.attention import Layer
from vitrail.explaining.canvas import Box, Format, Panel, page
from vitrail.explaining.choices import Query
from vitrail.explaining.explain import Explanation

_SIDE, _LONGEST = 320, 564  # pixels: of a square picture, and the longer side of any
_SMALL = 124  # the side of a head's picture, were it square
_STRONG = 0.7  # a map's share in the colour of a pixel that it covers


def draw(explanation: Explanation, title: str = "", format: Format = "png") -> bytes:
    """Draw an explanation as a file: the image, its patches and the map, then each head's."""
    rows = [_overview(explanation), *_heads(explanation)]
    return page(rows, title or explanation.method, about(explanation), format)


def about(explanation: Explanation) -> str:
    """Say what a map is of."""
    found, parts = explanation, []
    if found.target is not None:
        parts.append(f"{found.label} ({found.probabilities[found.target]:.1%})")
    if found.layers == ("pool",):
        parts.append("attention of the pooling")
    elif found.method == "occlusion":
        parts.append("what hiding a patch costs the class")
    else:
        several = "s" * (len(found.layers) > 1)
        word = {"attention": "of", "rollout": "through", "relevance": "through"}[found.method]
        parts.append(f"{found.method} {word} layer{several} {_ranges(found.layers)}")
    if found.queries:
        parts.append("of " + ", ".join(map(_named, found.queries)))
    if (figure := found.faithfulness) is not None:
        parts.append(
            f"deletion {figure.deletion:.3f} (random {figure.random_deletion:.3f}), insertion "
            f"{figure.insertion:.3f} (random {figure.random_insertion:.3f})"
        )
    return " · ".join(parts)


def scale_of(values: np.ndarray) -> tuple[float, float]:
    """Give the ends of a map's scale: from 0, or, where it goes below, as far below as above."""
    high = float(np.abs(values).max())
    return (-high if values.min() < 0 else 0.0), high


def colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Give values as colours, ... 3 in 0 .. 1."""
    from matplotlib import colormaps

    return colormaps["berlin" if low < 0 else "inferno"]((values - low) / (high - low or 1))[
        ..., :3
    ]


def overlay(
    image: np.ndarray, values: np.ndarray, seen: Box, low: float, high: float
) -> np.ndarray:
    """Lay a map, h w, over the box `seen` of an image, H W 3 uint8; the rest turns pale."""
    grey = image.mean(axis=2, keepdims=True) / 255
    down, across = (
        _cells(seen[axis], seen[axis + 2], values.shape[axis], image.shape[axis]) for axis in (0, 1)
    )
    colour = colours(values, low, high)[down.clip(0)[:, None], across.clip(0)]
    inside = ((down[:, None] >= 0) & (across >= 0))[..., None]
    mixed = np.where(inside, (1 - _STRONG) * grey + _STRONG * colour, 0.65 + 0.35 * grey)
    return np.rint(255 * mixed).astype(np.uint8)


def _cells(start: float, end: float, cells: int, length: int) -> np.ndarray:
    """Give the cell in which each of `length` pixels lies, -1 for those in none."""
    at = np.floor((np.arange(length) + 0.5 - start) / (end - start) * cells).astype(int)
    return np.where((at >= 0) & (at < cells), at, -1)


def shown(image: np.ndarray, side: int) -> np.ndarray:
    """Give pixels, H W C, as they are shown, H W 3: as large as a square of `side`.

    Small ones are enlarged by whole pixels, so that each is seen; a strip is no longer than a page.
    """
    from PIL import Image

    pixels = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    tall, wide = pixels.shape[:2]
    times = min(side / (tall * wide) ** 0.5, _LONGEST / max(tall, wide))
    if times >= 2:
        return pixels.repeat(round(times), axis=0).repeat(round(times), axis=1)
    size = max(round(wide * times), 1), max(round(tall * times), 1)
    return np.asarray(Image.fromarray(pixels).resize(size))


def _overview(found: Explanation) -> list[Panel]:
    whole, input = shown(found.image, _SIDE), shown(found.pixels, _SIDE)
    (height, width), (h, w), one = found.image.shape[:2], found.maps.shape[-2:], found.map
    seen = _scaled(found.seen, whole.shape[0] / height, whole.shape[1] / width)
    cut = tuple(map(round, found.seen)) != (0, 0, height, width)
    patch = input.shape[0] / h, input.shape[1] / w
    asking = [
        _scaled((q[0], q[1], q[0] + 1, q[1] + 1), *patch)
        for q in found.queries
        if not isinstance(q, str)
    ]
    low, high = scale_of(one)
    mean = ["mean of the maps below"] * (found.maps.size > one.size)
    size = [f"{width} x {height} pixels", *["outlined: what the model sees"] * cut]
    cells = [f"{h} x {w} patches", *["outlined: who looks"] * bool(asking)]
    ends = f"{_number(low, found)} to {_number(high, found)}"
    strip = colours(np.linspace(low, high, 64), low, high)
    over = overlay(input, one, _all_of(input), low, high)
    return [
        Panel(whole, size, [_within(seen, whole)] * cut),
        Panel(overlay(whole, one, seen, low, high), [ends, *mean], strip=strip),
        Panel(input, cells, asking, (h, w)),
        *[Panel(over, ["the map by itself"])] * cut,
    ]


def _heads(found: Explanation) -> Iterator[list[Panel]]:
    """Give a row of small pictures for each layer and query, each map on a scale of its own."""
    if found.maps.size == found.map.size:
        return
    names = [_named(query) for query in found.queries or ("the pooling's query",)]
    if found.method == "rollout":
        yield [_small(found, one, [name]) for one, name in zip(found.maps, names, strict=True)]
        return
    for layer, of_heads in zip(found.layers, found.maps, strict=True):
        for i, name in enumerate(names):
            yield [
                _small(found, of_queries[i], [f"layer {layer}, head {head}", name])
                for head, of_queries in zip(found.heads, of_heads, strict=True)
            ]


def _small(found: Explanation, values: np.ndarray, lines: list[str]) -> Panel:
    input = shown(found.pixels, _SMALL)
    low, high = scale_of(values)
    pixels = overlay(input, values, _all_of(input), low, high)
    return Panel(pixels, [*lines, f"0 to {_number(high, found)}"])


def _number(value: float, found: Explanation) -> str:
    if not value or found.method == "relevance":
        return f"{value:.3g}"
    if found.method != "occlusion":
        return f"{value:.1%}"
    return f"{value:.3g} nats" if value > 0 else f"{value:.3g}"


def _named(query: Query) -> str:
    return query if isinstance(query, str) else f"patch {query[0]},{query[1]}"


def _ranges(layers: tuple[Layer, ...]) -> str:
    """Write 0, 1, 2, 5 as 0-2, 5."""
    parts: list[list[Layer]] = []
    for layer in layers:
        if parts and isinstance(layer, int) and layer - 1 == parts[-1][-1]:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def _scaled(box: Box, down: float, across: float) -> Box:
    return box[0] * down, box[1] * across, box[2] * down, box[3] * across


def _all_of(image: np.ndarray) -> Box:
    return 0, 0, image.shape[0], image.shape[1]


def _within(box: Box, image: np.ndarray) -> Box:
    """Give the part of a box that lies in an image."""
    top, left, bottom, right = box
    return max(top, 0), max(left, 0), min(bottom, image.shape[0]), min(right, image.shape[1])
