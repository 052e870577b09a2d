"""What a model has learned as pictures: filters and positions; norms and distances for an image."""

import numpy as np
import torch

from vitrail.errors import ConfigError
from vitrail.explaining.canvas import Format, Panel, page
from vitrail.explaining.explain import Explanation
from vitrail.explaining.inside import (
    attention_distance,
    patch_filters,
    position_similarity,
    token_norms,
)
from vitrail.explaining.pictures import colours, overlay, scale_of, shown
from vitrail.weights.bundle import Bundle

_ACROSS = 7  # filters, and places whose positions are compared, side by side
_GAP = 4  # pixels between them


def draw_model(bundle: Bundle, title: str = "", format: Format = "png") -> bytes:
    """Draw the patch filters and, where a model has positions, how alike they are."""
    found = patch_filters(bundle.model, 4 * _ACROSS)
    parts = found.components / np.abs(found.components).max(axis=(1, 2, 3), keepdims=True)
    side = max(round(48 / parts.shape[1]), 1)
    tiles = [_enlarged(0.5 + part / 2, side) for part in parts]
    lines = [
        f"{len(parts)} principal components of the patch filters",
        f"{found.shares.sum():.0%} of their variance",
    ]
    row = [Panel(_mosaic(tiles), lines), *_positions(bundle)]
    return page([row], title or "model", _about(bundle), format)


def draw_inside(
    bundle: Bundle, found: Explanation, title: str = "", format: Format = "png"
) -> bytes:
    """Draw, for the image of an explanation, how long tokens are and how far heads look."""
    model = bundle.model
    pixels = torch.from_numpy(np.moveaxis(found.pixels, -1, 0)[None].copy())
    images = bundle.preprocess.normalize(pixels.to(next(model.parameters()).device))
    input = shown(found.pixels, 124)
    norms = []
    for layer, lengths in enumerate(token_norms(model, images).patches[:, 0]):
        low, high = float(lengths.min()), float(lengths.max())
        over = overlay(input, lengths, (0, 0, *input.shape[:2]), low, high)
        ends = f"{low:.3g} to {high:.3g}, median {np.median(lengths):.3g}"
        norms.append(Panel(over, [f"token norms after layer {layer}", ends]))
    row = [_distances(attention_distance(model, images))]
    return page([norms, row], title or "inside", _about(bundle), format)


def _positions(bundle: Bundle) -> list[Panel]:
    try:
        alike = position_similarity(bundle.model)
    except ConfigError:  # positions = none
        return []
    h, w = alike.shape[:2]
    rows, columns = (np.unique(np.linspace(0, n - 1, _ACROSS).round().astype(int)) for n in (h, w))
    low, high = scale_of(alike)
    side = max(round(48 / max(h, w)), 1)
    tiles = [_enlarged(colours(alike[i, j], low, high), side) for i in rows for j in columns]
    lines = ["how alike positions are: each tile", "a patch, and all patches in it"]
    strip = colours(np.linspace(low, high, 64), low, high)
    return [Panel(_mosaic(tiles, len(columns)), [f"{low:.2g} to {high:.2g}", *lines], strip=strip)]


def _distances(distances: np.ndarray) -> Panel:
    low, high = float(distances.min()), float(distances.max())
    cells = _enlarged(colours(distances, low, high), 24)
    lines = [
        f"{low:.3g} to {high:.3g} pixels",
        "mean attention distance: a row is a layer,",
        "the first on top; a column is a head",
    ]
    return Panel(cells, lines, strip=colours(np.linspace(low, high, 64), low, high))


def _about(bundle: Bundle) -> str:
    config = bundle.model.config
    sizes = f"{config.depth} layers, {config.heads} heads, width {config.width}"
    return f"{sizes}, patches of {config.patch_size} pixels, {config.positions} positions"


def _enlarged(values: np.ndarray, times: int) -> np.ndarray:
    """Give H W 3 in 0 .. 1 as uint8, each value a square of `times` pixels."""
    pixels = np.rint(255 * np.broadcast_to(values, (*values.shape[:2], 3))).astype(np.uint8)
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _mosaic(tiles: list[np.ndarray], across: int = _ACROSS) -> np.ndarray:
    """Lay tiles of one size in rows, on white."""
    tall, wide = (side + _GAP for side in tiles[0].shape[:2])
    whole = np.full((-(-len(tiles) // across) * tall, across * wide, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // across * tall, i % across * wide
        whole[top : top + tall - _GAP, left : left + wide - _GAP] = tile
    return whole[:-_GAP, :-_GAP]
