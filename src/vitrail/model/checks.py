"""What a `ViTConfig` is held against before anything is built."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from vitrail.errors import ConfigError, nearest

if TYPE_CHECKING:
    from vitrail.model.config import ViTConfig


def check_names(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise `ConfigError` with the nearest right word where a name is no field of `owner`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise ConfigError(f'{owner} has no "{name}".{nearest(name, known)}')


def check_types(config: object) -> None:
    """Raise `ConfigError` where a dataclass holds a value that its annotation does not allow."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise ConfigError(f"{name} is {value!r}; it should be {_wanted(value, hint)}")


def check_image_size(size: tuple[int, int], patch: int) -> None:
    """Raise `ConfigError` with the nearest sizes where `patch` does not divide (H, W)."""
    for side in size:
        if side < patch or side % patch:
            low = max(side // patch, 1) * patch
            near = f"{low}" if side < patch else f"{low} and {low + patch}"
            raise ConfigError(
                f"image size {size[0]} x {size[1]}: patch size {patch} does not divide {side}; "
                f"nearest sizes that it does: {near}"
            )


def check_sizes(config: "ViTConfig") -> None:
    """Raise `ConfigError` where a count or a size is out of range or does not divide."""
    for name in ("patch_size", "channels", "width", "heads", "head_width", "mlp_width"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; it should be 1 or more")
    for name in ("classes", "depth", "registers", "prefix_positions"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it should be 0 or more")
    for name in ("norm_eps", "rope_base", "layer_scale"):
        if getattr(config, name) is not None and not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it should be above 0")
    check_image_size(config.image_size, config.patch_size)


def check_heads(width: int, heads: int) -> None:
    """Raise `ConfigError` with the nearest widths where `heads` does not divide `width`."""
    if heads > 0 and width % heads:
        low = width - width % heads
        near = f"{low} and {low + heads}" if low else f"{heads}"
        raise ConfigError(
            f"width {width} does not split into {heads} heads; nearest widths that do: {near}"
        )


def check_tokens(config: "ViTConfig") -> None:
    """Raise `ConfigError` where tokens, positions and pooling contradict each other."""
    if config.pooling in ("cls", "cls+mean") and not config.class_token:
        raise ConfigError(
            f'pooling "{config.pooling}" reads the class token, and class_token is false; '
            'set class_token = true, or pooling = "mean", "mean_all" or "map"'
        )
    if config.distillation_token and config.pooling != "cls":
        raise ConfigError(
            "the distillation token is read beside the class token: distillation_token needs "
            f'pooling = "cls", not "{config.pooling}"'
        )
    if config.positions == "learned" and config.prefix_positions > config.prefix:
        raise ConfigError(
            f"prefix_positions is {config.prefix_positions}, but {config.prefix} tokens stand "
            f"before the patches; set prefix_positions to {config.prefix} or less"
        )
    # Both give a quarter of their width to each of sine and cosine of each of the two axes.
    name = {"sincos": "width", "rope": "head_width"}.get(config.positions)
    if name and getattr(config, name) % 4:
        size = getattr(config, name)
        raise ConfigError(
            f'positions = "{config.positions}" needs a {name} that 4 divides, not {size}; '
            f"nearest: {max(size // 4 * 4, 4)} and {size // 4 * 4 + 4}"
        )


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and [type(v) for v in value] == list(get_args(hint))
    if hint == float | None:
        return value is None or _fits(value, float)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _wanted(value: object, hint: Any) -> str:
    if get_origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        return f"one of {', '.join(choices)}.{nearest(str(value), choices)}"
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} whole numbers, such as (224, 160)"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))
