"""What a person asks to see, turned into numbers: layers, heads, queries and a class.

What does not exist is a `ConfigError` that says what does; nothing is ever left out in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitrail.errors import ConfigError, check_counts, is_whole, nearest
from vitrail.explaining.attention import Layer
from vitrail.explaining.hiding import Fill
from vitrail.model.config import ViTConfig

Method = Literal["rollout", "attention", "relevance", "occlusion"]
Query = str | tuple[int, int]  # class, distillation, register-0, patches, or a patch (row, column)
Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is to be explained, and how."""

    method: Method
    target: int | None  # a class; None for the likeliest
    layers: tuple[Layer, ...]
    heads: tuple[int, ...]
    queries: tuple[Query, ...]  # none: what the head reads
    tokens: tuple[tuple[int, ...], ...]  # of each query
    fill: Fill
    batch_size: int


def ask(
    config: ViTConfig,
    labels: Sequence[str],
    grid: Grid,
    method: str,
    target: str | int | None,
    layers: Sequence[int | str] | None,
    heads: Sequence[int] | None,
    queries: Sequence[Query] | None,
    fill: str,
    batch_size: int,
) -> Asked:
    """Check all that can be checked without an image."""
    for name, word, known in (("method", method, Method), ("fill", fill, Fill)):
        if word not in get_args(known):
            choices = ", ".join(get_args(known))
            raise ConfigError(f'{name} is "{word}"; it should be one of {choices}')
    for name, value in (("layers", layers), ("heads", heads), ("queries", queries)):
        if value is None or method in ("attention", "rollout"):
            continue
        if method == "occlusion" or name == "queries":
            raise ConfigError(f"{method} has no {name}: leave them out, or ask for attention")
    if method in ("relevance", "occlusion") and not labels:
        raise ConfigError(
            f"{method} explains a class, and this model has none: it gives features (classes 0). "
            "attention and rollout need no class"
        )
    whole, attending = method == "occlusion", method == "attention"
    blocks = [] if whole else pick_layers(layers, config, attending=attending)
    asked = pick_queries(queries, config, attending=attending)
    if blocks == ["pool"]:
        if queries is not None:
            raise ConfigError('layer "pool" has a query of its own; leave queries out')
        asked = []
    check_counts(batch_size=batch_size)
    return Asked(
        method=method,  # type: ignore[arg-type]
        target=pick_target(target, labels),
        layers=tuple(blocks),
        heads=() if whole else tuple(pick_heads(heads, config)),
        queries=tuple(asked),
        tokens=tuple(tuple(pick_query(query, config, grid)) for query in asked),
        fill=fill,  # type: ignore[arg-type]
        batch_size=batch_size,
    )


def pick_layers(
    layers: Sequence[int | str] | None, config: ViTConfig, *, attending: bool
) -> list[Layer]:
    """Give the numbers of the blocks; for None all, but the last where heads are shown one by one.

    Where they are, they stand in the order asked for, each once, and the attention of the pooling
    can be asked for as well, by itself. What goes through layers goes through them in turn.
    """
    if layers is None:
        return [config.depth - 1] if attending else list(range(config.depth))
    if not attending or "pool" not in _some("layers", layers):
        blocks = [_counted("layer", layer, config.depth) for layer in _some("layers", layers)]
        return list(dict.fromkeys(blocks if attending else sorted(blocks)))
    if config.pooling != "map":
        raise ConfigError(
            f'there is no layer "pool": this model pools by {config.pooling}, without attention'
        )
    if len(layers) > 1:
        raise ConfigError('layer "pool" has a query of its own; ask for it without other layers')
    return ["pool"]


def pick_heads(heads: Sequence[int] | None, config: ViTConfig) -> list[int]:
    """Give the numbers of the heads in the order asked for, each once; all of them for None."""
    if heads is None:
        return list(range(config.heads))
    counted = (_counted("head", head, config.heads) for head in _some("heads", heads))
    return list(dict.fromkeys(counted))


def pick_queries(
    queries: Sequence[Query] | None, config: ViTConfig, *, attending: bool
) -> list[Query]:
    """Give the queries by name; for None none, but one where heads are shown one by one.

    It is the class token, or the mean of patches of a model without one.
    """
    if queries is None:
        return ["class" if config.class_token else "patches"] if attending else []
    return list(_some("queries", queries))


def pick_query(query: Query, config: ViTConfig, grid: Grid) -> list[int]:
    """Give the tokens of a query, whose rows are averaged: one, or all patches for `patches`."""
    first, (h, w) = config.prefix, grid
    if query == "patches":
        return list(range(first, first + h * w))
    if isinstance(query, str):
        names = prefix_names(config)
        if query in names:
            return [names.index(query)]
        known = [*names, "patches"]
        raise ConfigError(
            f'there is no query "{query}".{nearest(query, known)} This model has '
            f"{', '.join(known)}, and a patch by its row and column"
        )
    row, column = _place(query)
    if not (0 <= row < h and 0 <= column < w):
        raise ConfigError(
            f"there is no patch in row {row}, column {column}: the rows are 0 to {h - 1}, "
            f"the columns 0 to {w - 1}"
        )
    return [first + row * w + column]


def prefix_names(config: ViTConfig) -> list[str]:
    """Name the tokens before the patches, in their order."""
    named = ["class"] * config.class_token + ["distillation"] * config.distillation_token
    return named + [f"register-{i}" for i in range(config.registers)]


def pick_target(target: str | int | None, labels: Sequence[str]) -> int | None:
    """Give the index of a class by its name or its index; None stays None."""
    if target is None:
        return None
    if not labels:
        raise ConfigError(f"this model has no class {target!r}: it gives features (classes 0)")
    if target in labels:
        return labels.index(str(target))
    if isinstance(target, str) and not (target.isascii() and target.isdecimal()):
        raise ConfigError(
            f'there is no class "{target}".{nearest(target, labels)} A class is named, or counted '
            f"from 0 to {len(labels) - 1}"
        )
    if not isinstance(target, str) and not is_whole(target):
        raise ConfigError(f"target is {target!r}; it should be a class by its name or its index")
    if not 0 <= int(target) < len(labels):
        raise ConfigError(f"there is no class {target}: the classes are 0 to {len(labels) - 1}")
    return int(target)


def _some(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{name} is {values!r}; it should be a list")
    if not values:
        raise ConfigError(f"{name} is empty; leave it out, or name at least one")
    return values


def _counted(name: str, number: object, count: int) -> int:
    """Give a number from 0 to below `count`; below 0 it counts from the end."""
    if not is_whole(number) or not -count <= number < count:
        raise ConfigError(
            f"there is no {name} {number!r}: the {name}s are 0 to {count - 1}, or -{count} to -1 "
            "from the end"
        )
    return int(number) % count


def _place(query: Any) -> tuple[int, int]:
    if not (isinstance(query, tuple | list) and [type(n) for n in query] == [int, int]):
        raise ConfigError(
            f"query is {query!r}; it should be a token's name, or a patch (row, column)"
        )
    return query[0], query[1]
