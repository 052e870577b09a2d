"""What a `ViTConfig` is held against before anything is built."""

from typing import TYPE_CHECKING

from vitrail.errors import ConfigError, check_range, is_whole

if TYPE_CHECKING:
    from vitrail.model.config import ViTConfig


MOST = 10**9  # of anything: a number from a file may be of any length


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


def check_images(shape: tuple[int, ...], channels: int, patch: int) -> None:
    """Raise `ConfigError` where a batch of this shape cannot be cut into patches: B C H W."""
    if len(shape) != 4:
        raise ConfigError(
            f"a tensor of shape {shape} is no batch of images: this model reads "
            f"(B, {channels}, H, W)"
        )
    if shape[1] != channels:
        raise ConfigError(
            f"the images have {shape[1]} channels, this model reads {channels}: convert them, or "
            f"build the model with channels={shape[1]}"
        )
    check_image_size((shape[2], shape[3]), patch)


def check_layer(layer: int, depth: int) -> None:
    """Raise `ConfigError` for a block that a model of `depth` blocks does not have."""
    if not (is_whole(layer) and -depth <= layer < depth):
        raise ConfigError(f"there is no layer {layer!r}: the blocks are 0 to {depth - 1}")


def check_merge(merge: int) -> None:
    """Raise `ConfigError` for a number of patches to merge in each block that is none."""
    if type(merge) is not int or merge < 0:
        raise ConfigError(
            f"merge is {merge!r}; it should be a whole number of patches that each block merges "
            "away, 0 for none"
        )


def check_sizes(config: "ViTConfig") -> None:
    """Raise `ConfigError` where a count or a size is out of range or does not divide."""
    for most in (float("inf"), MOST):  # "1 or more" says more than a range that nobody meets
        check_range(config, "patch_size channels width heads head_width mlp_width", 1, most)
        check_range(config, "classes depth registers prefix_positions", 0, most)
        check_range(config, "norm_eps rope_base layer_scale", 0, most, open_low=True)
    check_image_size(config.image_size, config.patch_size)


def check_heads(width: int, heads: int) -> None:
    """Raise `ConfigError` with the nearest widths where `heads` does not divide `width`."""
    if width % heads:
        low = width - width % heads
        near = f"{low} and {low + heads}" if low else f"{heads}"
        raise ConfigError(
            f"width {width} does not split into {heads} heads; nearest widths that do: {near}"
        )


def check_gate(activation: str) -> None:
    """Raise `ConfigError` for a SwiGLU with another activation than its own, SiLU."""
    if activation not in ("gelu", "silu"):  # "gelu" is the default: nobody asked for it
        raise ConfigError(
            f'mlp = "swiglu" gates with "silu" (Shazeer 2020), not "{activation}"; '
            'leave activation out, or set mlp = "plain"'
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
            f"prefix_positions is {config.prefix_positions}, and the model has {config.prefix} "
            f"tokens before the patches; set prefix_positions to {config.prefix}"
        )
    if config.pooling == "map":  # splits the width itself, whatever head_width is
        check_heads(config.width, config.heads)
    # Both give a quarter of their width to each of sine and cosine of each of the two axes.
    name = {"sincos": "width", "rope": "head_width"}.get(config.positions)
    if name and getattr(config, name) % 4:
        size = getattr(config, name)
        raise ConfigError(
            f'positions = "{config.positions}" needs a {name} that 4 divides, not {size}; '
            f"nearest: {max(size // 4 * 4, 4)} and {size // 4 * 4 + 4}"
        )
