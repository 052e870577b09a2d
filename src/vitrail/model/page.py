"""The rows of a summary, laid out as the page that a learner reads."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from textwrap import fill

_LEGEND = {
    "B": "batch",
    "C": "channels",
    "H": "image height",
    "W": "image width",
    "h": "patches down",
    "w": "patches across",
    "N": "tokens",
    "P": "prefix tokens",
    "D": "width",
    "K": "heads",
    "d": "head width",
    "M": "hidden width",
    "classes": "of the head",
}
_NOTES = {
    "patches": "patches: cut out, flattened, each multiplied by one matrix, the projection. As a "
    "convolution whose stride is its kernel it is the same matrix, and no patch is written down.",
    "split": "split: one product makes q, k and v; each takes a third of its numbers, and each "
    "head takes d of those.",
    "scores": "scores: softmax(q k^T / sqrt(d)); how much each token takes of every other, K times "
    "over. No memory: fused kernels never write them down.",
    "": "macs: multiply-accumulates for one image, of linear layers, convolution and attention's "
    "two products. activations: float32 bytes of what a step makes; none for another view of it.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One step: `axes` names the sizes in `shape`, where B is 1; `einops` is a change of layout."""

    name: str
    axes: str
    shape: tuple[int, ...]
    einops: str
    parameters: int
    macs: int
    activation_bytes: int


def page(model: str, rows: Sequence[Row]) -> str:
    """Lay out the steps of a model as text that a learner reads from top to bottom."""
    start = rows[0]
    title = f"{model}, from {start.name} {' x '.join(map(str, start.shape[1:]))}"
    notes = [
        fill(text, 100, subsequent_indent="  ")
        for word, text in _NOTES.items()
        if any(row.name.endswith(word) for row in rows)
    ]
    return "\n".join([title, _legend(rows), "", *_table(rows), "", *notes])


def _legend(rows: Sequence[Row]) -> str:
    words = {**_LEGEND, "N": "patches"} if rows[0].name == "image" else _LEGEND
    sizes: dict[str, dict[str, None]] = {letter: {} for letter in words}
    for axis, size in chain.from_iterable(zip(r.axes.split(), r.shape, strict=True) for r in rows):
        sizes.get(axis, {})[f"{size:,}"] = None
    said = [f"{letter} {words[letter]} {', '.join(n)}" for letter, n in sizes.items() if n]
    # A line may end after a size, never between a letter and its size.
    return fill(" · ".join(said).replace(" ", "~").replace("·~", "· "), 100).replace("~", " ")


def _table(rows: Sequence[Row]) -> list[str]:
    """Lay the rows out as text: equal blocks once, a change of layout under its row."""
    names, axes, shapes = (
        max(len(text) for text in column)
        for column in zip(*((r.name, r.axes, _spaced(r.shape)) for r in rows), strict=True)
    )
    left = names + axes + shapes + 4
    heading = f"{'step':<{names}}  {'axes':<{axes}}  {'shape':<{shapes}}"
    lines = [f"{heading}  {'parameters':>13}  {'macs':>8}  {'activations':>11}"]
    blocks = [list(block) for _, block in groupby(rows, _block)]
    for _, run in groupby(blocks, _without_number):
        first, *same = run
        for row in first:
            text = f"{row.name:<{names}}  {row.axes:<{axes}}  {_spaced(row.shape):<{shapes}}"
            lines.append(f"{text}  {_costs([row])}".rstrip())
            lines += [f"    {row.einops}"] * bool(row.einops)
        if same:
            numbers = f"{_block(same[0][0])} to {_block(same[-1][0])}"
            text = f"{numbers}: the same again, {len(same)} times"
            if len(same) == 1:
                text = f"{_block(same[0][0])}: the same again"
            lines.append(f"{text:<{left}}  {_costs(chain.from_iterable(same))}")
        lines.append("")
    return [*lines, f"{'total':<{left}}  {_costs(rows)}"]


def _block(row: Row) -> str:
    """Give the block that a row is of: `blocks.3` for `blocks.3.mlp.fc1`, nothing for `head`."""
    found = re.match(r"((blocks|\d+)\.)*\d+", row.name)
    return found[0] if found else ""


def _without_number(block: Sequence[Row]) -> list[Row]:
    return [replace(row, name=row.name.removeprefix(_block(row))) for row in block]


def _spaced(shape: tuple[int, ...]) -> str:
    return " ".join(map(str, shape))


def _costs(rows: Iterable[Row]) -> str:
    total = [(row.parameters, row.macs, row.activation_bytes) for row in rows]
    parameters, macs, memory = map(sum, zip(*total, strict=True))
    counts = f"{parameters:,}" if parameters else ""
    return f"{counts:>13}  {_short(macs, 1000):>8}  {_short(memory, 1024):>11}"


def _short(number: float, step: int) -> str:
    """Write 115605504 as `115.6 M`, or in steps of 1024 as `110.2 MiB`; nothing for 0."""
    units = ["", "K", "M", "G", "T"] if step == 1000 else ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= step and len(units) > 1:
        number, units = number / step, units[1:]
    if not number:
        return ""
    return f"{number:.1f} {units[0]}" if isinstance(number, float) else f"{number} {units[0]}"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align columns, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
