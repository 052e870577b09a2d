"""An overview of a data set as text for people, readable in 80 columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from textwrap import fill
from typing import TypeVar

from rich.cells import cell_len, set_cell_size  # Korean letters are two columns wide

from vitrail.data.listing import one_line
from vitrail.data.overview import Copy, Overview

Thing = TypeVar("Thing")
_WIDTH = 80
_LONGEST_NAME = 32  # columns of a class's name
_FILL = "█▒░"  # of a bar: train, held out, test
_MOST_CLASSES = 50  # beyond it only the largest and the smallest are shown
_ENDS = 20
_MOST_LINES = 10  # of files


def page(found: Overview, notes: Iterable[str] = ()) -> str:
    """Lay out what was found; `notes` are lines on how the data was read."""
    parts = [f"{sum(counts):,} {name}" for name, counts in found.splits.items()]
    title = f"{one_line(found.source)}: {found.images:,} images ({' + '.join(parts)})"
    head = [f"{title}, {len(found.classes):,} classes", *map(_wrapped, notes)]
    blocks = [head, _classes(found), _figures(found), _bad(found), *_copies(found)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _classes(found: Overview) -> list[str]:
    rows = list(zip(found.classes, zip(*found.splits.values(), strict=True), strict=True))
    top, skipped = max(sum(counts) for _, counts in rows), 0
    if len(rows) > _MOST_CLASSES:
        rows.sort(key=lambda row: -sum(row[1]))
        skipped = len(rows) - 2 * _ENDS
    shown = rows[:_ENDS] + rows[-_ENDS:] if skipped else rows
    names = [_short(one_line(name)) for name, _ in shown]
    left = max(map(cell_len, ["class", *names]))
    heads = [*found.splits]
    widths = [max(len(f"{max(c):,}"), len(h)) for h, c in found.splits.items()]
    room = _WIDTH - left - sum(width + 2 for width in widths) - 2
    legend = "  ".join(f"{mark} {head}" for mark, head in zip(_FILL, heads, strict=False))
    lines = [_row("class", heads, left, widths, legend)]
    for name, (_, counts) in zip(names, shown, strict=True):
        numbers = [f"{count:,}" for count in counts]
        lines.append(_row(name, numbers, left, widths, _bar(counts, top, room)))
    if skipped:
        between = f"... {skipped:,} classes between the {_ENDS} largest and the {_ENDS} smallest"
        lines.insert(1 + _ENDS, f"{between} (--json lists all)")
    return lines


def _row(name: str, cells: Sequence[str], left: int, widths: Sequence[int], bar: str) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join([set_cell_size(name, left), *numbers, bar]).rstrip()


def _bar(counts: Sequence[int], top: int, room: int) -> str:
    """Give each split its share of a bar whose whole `room` stands for `top` images."""
    ends = [round(end * room / top) for end in accumulate(counts)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    # A class with an image has a bar, however short.
    lengths = [
        max(n, 1) if count and not ends[-1] else n for n, count in zip(lengths, counts, strict=True)
    ]
    return "".join(mark * length for mark, length in zip(_FILL, lengths, strict=False))


def _short(name: str) -> str:
    if cell_len(name) <= _LONGEST_NAME:
        return name
    return set_cell_size(name, _LONGEST_NAME - 1).rstrip() + "…"


def _figures(found: Overview) -> list[str]:
    """Give balance, sizes and formats, a line each."""
    counts = next(iter(found.splits.values()))
    low, high = min(counts), max(counts)
    names = [one_line(found.classes[counts.index(count)]) for count in (high, low)]
    first = next(iter(found.splits))
    lines = [f"balance  {high:,} ({_short(names[0])}) to {low:,} ({_short(names[1])}) in {first}"]
    if low == high:
        lines = [f"balance  {low:,} of each class in {first}"]
    elif low:
        lines[0] += f": {high / low:.1f} to 1"
    if found.sizes:
        formats = ", ".join(f"{count:,} {name}" for name, count in found.formats.items())
        lines += [f"sizes    {_sizes(found)}", f"formats  {formats}"]
    return lines


def _sizes(found: Overview) -> str:
    sizes, ends = [*found.sizes], [*accumulate(found.sizes.values())]
    if len(sizes) == 1:
        return f"{_size(sizes[0])} pixels, all of them"
    median = next(size for size, end in zip(sizes, ends, strict=True) if 2 * end >= ends[-1])
    texts = (("smallest", sizes[0]), ("median", median), ("largest", sizes[-1]))
    return ", ".join(f"{word} {_size(size)}" for word, size in texts) + " (width x height)"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _bad(found: Overview) -> list[str]:
    if not found.bad:
        return []
    share = len(found.bad) / found.images
    head = (
        f"{_count(len(found.bad), 'image')} cannot be read ({share:.2%}); training leaves them "
        "out, and stops above data.max_bad_share:"
    )
    return [
        _wrapped(head),
        *_listed(found.bad, lambda b: f"{one_line(b.path)}: {one_line(b.reason)}"),
    ]


def _copies(found: Overview) -> Iterator[list[str]]:
    """Say what is there twice: leaks first, then contradictions, then the others."""
    leaks, conflicts = found.leaks, found.conflicts
    if leaks:
        held_out = " or ".join([*found.splits][1:])
        head = (
            f"WARNING: {_count(len(leaks), 'leak')} from train to {held_out}. The same file is on "
            "both sides, so that what was learned by heart counts as understood. Remove all but "
            "one file of each line:"
        )
        yield [_wrapped(head), *_listed(leaks, _equation)]
    if conflicts:
        head = (
            f"WARNING: {_count(len(conflicts), 'file')} in more than one class; only one is right:"
        )
        yield [_wrapped(head), *_listed(conflicts, _equation)]
    told = {id(group) for group in (*leaks, *conflicts)}
    rest = [group for group in found.duplicates if id(group) not in told]
    if rest:
        more = "more " if told else ""
        head = f"{_count(len(rest), f'{more}file')} there twice or more, on the same side:"
        yield [head, *_listed(rest, _equation)]


def _equation(group: Sequence[Copy]) -> str:
    """Write `train/cat/1.jpg = val/dog/2.jpg`, with the classes where they differ."""
    differ = len({copy.label for copy in group}) > 1
    shown = [one_line(f"{copy.path} ({copy.label})" if differ else copy.path) for copy in group[:4]]
    more = f" = {len(group) - 4:,} more" if len(group) > 4 else ""
    return " = ".join(shown) + more


def _listed(things: Sequence[Thing], text: Callable[[Thing], str]) -> list[str]:
    lines = [f"  {text(thing)}" for thing in islice(things, _MOST_LINES)]
    left = len(things) - len(lines)
    return [*lines, f"  and {left:,} more (--json lists all)"] if left else lines


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"


def _wrapped(text: str) -> str:
    return fill(one_line(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
