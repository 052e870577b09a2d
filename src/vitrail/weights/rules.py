"""Rules: how the tensors of another library become ours, and ours theirs; one table for both ways.

A dialect is a table of rules. A rule names one or more of our tensors, one or more of theirs, and
two pure functions between them. It applies where all the tensors that it reads are there, so that
a bias that a model lacks needs no rule of its own.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.formats.stored import Stored

# What is known of the architecture: `ViTConfig` fields by name. Before the architecture is worked
# out only what the user, a preset or a config file says is in it, and shapes are all that is asked.
Known = Mapping[str, Any]
MOST_CHANNELS = 16  # that a flat patch is tried with


class Way(NamedTuple):
    """How a rule's tensors turn into each other; each function gives one tensor or several."""

    read: Callable[..., Tensor | tuple[Tensor, ...]]  # (known, *theirs) -> ours
    write: Callable[..., Tensor | tuple[Tensor, ...]]  # (known, *ours) -> theirs
    rows: bool = False  # ours is theirs, one below the other: each is read straight into its place


class Rule(NamedTuple):
    """Names on both sides, `{i}` for the number of a block, and the way between them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    way: Way
    only: tuple[tuple[str, Any], ...] = ()  # written only for models with these ViTConfig fields


SAME = Way(lambda known, x: x, lambda known, x: x)
TRANSPOSED = Way(lambda known, x: x.mT, lambda known, x: x.mT)
# Theirs lacks the first axis of 1, or the first two.
ROWS = Way(lambda known, x: x[None], lambda known, x: x[0])
VECTOR = Way(lambda known, x: x[None, None], lambda known, x: x[0, 0])


def stack(parts: int) -> Way:
    """Join their tensors, q, k and v for instance, along the rows of ours."""
    return Way(lambda known, *xs: join(*xs), lambda known, x: x.chunk(parts), rows=True)


def join(*xs: Tensor) -> Tensor:
    """Put tensors one below the other."""
    if xs[0].is_meta:  # torch would load its compiler for the shape of a sum
        rows = sum(x.shape[0] for x in xs)
        if any(x.shape[1:] != xs[0].shape[1:] for x in xs):
            raise ValueError("they differ in more than their rows")
        return xs[0].new_empty((rows, *xs[0].shape[1:]))
    return torch.cat(xs)


def _channels(flat: int, known: Known) -> int:
    """Give the channels of a square patch of `flat` numbers.

    Those that are known, where they fit; else the fewest that do: 3 of 16 x 16 x 3, 1 of 16 x 16.
    """
    for channels in (known.get("channels", 0), *range(1, MOST_CHANNELS + 1)):
        if channels and flat % channels == 0 and isqrt(flat // channels) ** 2 == flat // channels:
            return channels
    raise WeightsError(
        f"a patch of {flat} numbers is no square of pixels with 1 to {MOST_CHANNELS} channels: "
        "give channels="
    )


def from_flat(known: Known, x: Tensor) -> Tensor:
    """Read the matrix of a linear layer over flattened patches, D (s1 s2 C), as a kernel."""
    channels = _channels(x.shape[1], known)
    side = isqrt(x.shape[1] // channels)
    return rearrange(x, "d (s1 s2 c) -> d c s1 s2", c=channels, s1=side)


FLAT = Way(from_flat, lambda known, x: rearrange(x, "d c s1 s2 -> d (s1 s2 c)"))


def rule(ours: str | tuple[str, ...], theirs: str | tuple[str, ...], way: Way = SAME) -> Rule:
    """Make a rule between single names or several."""
    return Rule(
        (ours,) if isinstance(ours, str) else ours,
        (theirs,) if isinstance(theirs, str) else theirs,
        way,
    )


def layer(ours: str, theirs: str, way: Way = SAME) -> Iterator[Rule]:
    """Make the rules of a layer's weight (by `way`) and bias (as it is)."""
    yield rule(f"{ours}.weight", f"{theirs}.weight", way)
    yield rule(f"{ours}.bias", f"{theirs}.bias")


def stacked(ours: str, *theirs: str) -> Iterator[Rule]:
    """Make the rules of a layer that is several of theirs, one below the other."""
    for part in ("weight", "bias"):
        names = tuple(f"{name}.{part}" for name in theirs)
        yield rule(f"{ours}.{part}", names, stack(len(theirs)))


def only(rules: Iterable[Rule], **fields: Any) -> Iterator[Rule]:
    """Make rules that write only models with these fields: SwiGLU has names of its own."""
    yield from (one._replace(only=tuple(fields.items())) for one in rules)


def read(
    rules: Iterable[Rule], theirs: Mapping[str, Stored], known: Known
) -> tuple[dict[str, Stored], set[str]]:
    """Give our tensors, still unread, and the names of theirs that they are made of."""
    ours: dict[str, Stored] = {}
    used: set[str] = set()
    for one in _applying(rules, "theirs", theirs):
        if any(name in ours for name in one.ours) or not used.isdisjoint(one.theirs):
            continue  # an earlier rule has read it
        parts = [theirs[name] for name in one.theirs]
        blank = [torch.empty(p.shape, dtype=p.dtype, device="meta") for p in parts]
        try:
            shapes = _run(one.way.read, known, blank)
        except (RuntimeError, IndexError, ValueError, ArithmeticError) as error:
            found = ", ".join(f"{n} {tuple(theirs[n].shape)}" for n in one.theirs)
            raise WeightsError(f"{found} cannot be {' and '.join(one.ours)} of a ViT") from error
        for place, shape in enumerate(shapes):
            values = partial(_values, one, known, parts, place)
            ours[one.ours[place]] = Stored(tuple(shape.shape), shape.dtype, values)
        used.update(one.theirs)
    return ours, used


def write(
    rules: Iterable[Rule], ours: Mapping[str, Tensor], known: Known
) -> tuple[dict[str, Tensor], set[str]]:
    """Give their tensors, and the names of ours that they are made of."""
    theirs: dict[str, Tensor] = {}
    used: set[str] = set()
    for one in _applying(rules, "ours", ours):
        if not used.isdisjoint(one.ours) or any(known[name] != value for name, value in one.only):
            continue  # an earlier rule has written it, or a later one will
        values = _run(one.way.write, known, [ours[name] for name in one.ours])
        theirs |= zip(one.theirs, (value.contiguous() for value in values), strict=True)
        used.update(one.ours)
    return theirs, used


def _applying(rules: Iterable[Rule], side: str, names: Mapping[str, Any]) -> Iterator[Rule]:
    """Give each rule whose tensors on that side are all there, once for each block."""
    of_blocks, others = [], []
    for one in rules:
        in_block = any("{i}" in name for name in one.ours)
        (of_blocks if in_block else others).append(one)
    yield from (one for one in others if all(name in names for name in getattr(one, side)))
    for block in _blocks(of_blocks, side, names):
        numbered = [_numbered(one, block) for one in of_blocks]
        yield from (one for one in numbered if all(n in names for n in getattr(one, side)))


def _blocks(rules: Iterable[Rule], side: str, names: Iterable[str]) -> list[int]:
    """Give the numbers of the blocks that these names speak of, whatever is missing of each."""
    ends = {
        tuple(name.split("{i}", 1)) for one in rules for name in getattr(one, side) if "{i}" in name
    }
    starts = {start for start, _ in ends}
    found = set()
    for name in names:
        for start in starts:
            if name.startswith(start):
                number = re.match(r"\d{1,4}(?!\d)", name[len(start) :])
                if number and (start, name[len(start) + number.end() :]) in ends:
                    found.add(int(number[0]))
    return sorted(found)


def _numbered(one: Rule, block: int) -> Rule:
    def number(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.replace("{i}", str(block)) for name in names)

    return one._replace(ours=number(one.ours), theirs=number(one.theirs))


def _run(function: Callable[..., Any], known: Known, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    found = function(known, *tensors)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _values(one: Rule, known: Known, parts: list[Stored], place: int) -> Tensor:
    """Read the tensors of a rule and give one of ours, in memory of its own."""
    if one.way.rows:
        whole = torch.empty(
            (sum(part.shape[0] for part in parts), *parts[0].shape[1:]),
            dtype=parts[0].dtype,
            device="cpu",
        )
        for part, rows in zip(parts, whole.split([p.shape[0] for p in parts]), strict=True):
            part.read_into(rows)
        return whole
    value = _run(one.way.read, known, [part.read() for part in parts])[place].contiguous()
    # A part of a larger tensor would keep the whole alive, at an address that is not aligned.
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
