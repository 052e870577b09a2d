"""The architecture that a file's tensors show, under our names: what they cannot show is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isqrt, log2
from typing import Any, NamedTuple

from vitrail.errors import ConfigError, WeightsError, check_values
from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset, table
from vitrail.weights.formats.stored import Stored

Shapes = Mapping[str, Stored]
Size = tuple[int, int]
# Fields that a user may give to change the model, rather than to say what it is.
REQUESTS = ("image_size", "patch_size", "channels", "classes")
# What of a preset must be the file's own; the rest is there for what tensors do not show.
SIZES = ("width", "depth", "mlp", "mlp_width")


class Found(NamedTuple):
    """An architecture, and for each field whence it is known."""

    config: ViTConfig
    whence: dict[str, str]


def settle(
    shapes: Shapes,
    told: Mapping[str, Any],
    given: Mapping[str, Any],
    sidecar: Mapping[str, Any],
    preset_name: str | None,
    home: Mapping[str, Any],
) -> Found:
    """Give the architecture of these tensors, as they are stored.

    Tensors speak first, with what the dialect was `told` by theirs; then what was `given`, the
    `sidecar` (the ecosystem's own config file), the preset, and what the dialect's `home` does.
    Raises `WeightsError` where one contradicts a tensor, or where nobody says how many heads
    there are.
    """
    for values in (given, sidecar):
        check_values(values, ViTConfig)
    _check_ranks(shapes)
    if "blocks.0.norm1.weight" in shapes and "blocks.0.norm1.bias" not in shapes:
        raise WeightsError("its norms have no bias (RMSNorm, as AIMv2's): it is no plain ViT")
    named = {} if preset_name is None else _fields(preset(preset_name))
    sources = {"given": given, "its config file": sidecar, f"preset {preset_name}": named}
    said: dict[str, Any] = {**home, **named, **sidecar, **given, **told}
    whence = {name: "the dialect" for name in home}
    for source, values in reversed(sources.items()):
        whence |= dict.fromkeys(values, source)
    # An image size that is given may say what the table is made for, or ask for another.
    sizes = [
        values["image_size"] for values in (sidecar, given, named, home) if "image_size" in values
    ]
    shown = _shown(shapes, said, "pooling" in given or "pooling" in sidecar)
    placed, questions = _positions(shapes, said, sizes, shown)
    shown = {**shown, **placed, **told}
    _agree(shown, sources)
    whence |= dict.fromkeys(shown, "tensors")
    said |= shown
    if questions := questions + _heads(said):
        raise WeightsError(
            "the tensors do not show all that the model needs, and no config file beside them "
            "says it:" + "".join(f"\n  {question}" for question in questions) + "\n"
            "`vitrail convert FILE FOLDER --to vitrail` with these as flags makes a bundle, which "
            "says all of it"
        )
    try:
        return Found(ViTConfig(**said), whence)
    except ConfigError as error:
        raise WeightsError(f"the tensors and what is said of them do not fit: {error}") from error


def _check_ranks(shapes: Shapes) -> None:
    """Raise `WeightsError` for a tensor that is empty, or has more or fewer axes than ours."""
    for name, stored in shapes.items():
        layer, part = ["", *name.split(".")][-2:]
        axes = {"proj.weight": 4} if layer == "proj" and name.startswith("patch_embed") else {}
        rank = axes.get(f"{layer}.{part}", 2)
        if part in ("bias", "gamma", "q_bias", "v_bias") or "norm" in layer:
            rank = 1
        elif part in ("cls_token", "dist_token", "reg_token", "pos_embed", "latent"):
            rank = 3
        if len(stored.shape) != rank or 0 in stored.shape:
            flat = " (flat patches, as SigLIP2's NaFlex has them)" if rank == 4 else ""
            raise WeightsError(
                f"{name} has the shape {tuple(stored.shape)}: a plain ViT has {rank} axes there, "
                f"none of them empty{flat}"
            )


def nearest_preset(config: ViTConfig) -> str:
    """Give the preset of the nearest sizes, and of these the one that has most fields alike."""

    def apart(other: ViTConfig) -> tuple[float, float]:
        sizes = ("width", "depth", "mlp_width", "patch_size")
        pairs = [(getattr(config, size), getattr(other, size)) for size in sizes]
        distance = sum(abs(log2(mine / theirs)) for mine, theirs in pairs if mine and theirs)
        unlike = sum(value != getattr(other, name) for name, value in _fields(config).items())
        return distance, unlike

    return min(table(), key=lambda name: apart(table()[name]))


def _fields(config: ViTConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _shown(shapes: Shapes, said: Mapping[str, Any], asked: bool) -> dict[str, Any]:
    """Give the fields that names and shapes show; was the pooling `asked` for?"""
    patch = _shape(shapes, "patch_embed.proj.weight")
    if len(patch) != 4 or patch[2] != patch[3]:
        raise WeightsError(f"patches of {patch[2:]} pixels are not square: this is no plain ViT")
    width, hidden = patch[0], _shape(shapes, "blocks.0.mlp.fc2.weight")[1]
    inner = _shape(shapes, "blocks.0.attn.qkv.weight")[0] // 3
    gated = _shape(shapes, "blocks.0.mlp.fc1.weight")[0] == 2 * hidden
    tokens = {
        "class_token": "cls_token" in shapes,
        "distillation_token": "dist_token" in shapes,
        "registers": shapes["reg_token"].shape[1] if "reg_token" in shapes else 0,
    }
    shown = {
        "width": width,
        "channels": patch[1],
        "patch_size": patch[2],
        "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "mlp": "swiglu" if gated else "plain",
        "mlp_width": hidden,
        "qkv_bias": "all"
        if "blocks.0.attn.qkv.bias" in shapes
        else "no_key"
        if "blocks.0.attn.q_bias" in shapes
        else "none",
        "patch_bias": "patch_embed.proj.bias" in shapes,
        "patch_norms": "patch_embed.norm.weight" in shapes,
        "proj_bias": "blocks.0.attn.proj.bias" in shapes,
        "mlp_bias": "blocks.0.mlp.fc1.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "pre_norm": "norm_pre.weight" in shapes,
        "pre_logits": "pre_logits.weight" in shapes,
        **tokens,
        **_after(shapes, said, width, tokens, asked),
    }
    if "blocks.0.ls1.gamma" not in shapes:
        shown["layer_scale"] = None
    elif said.get("layer_scale") is None:
        shown["layer_scale"] = 1e-5  # where training began: no tensor shows it, none needs it
    return shown | _head_widths(shapes, said, inner)


def _head_widths(shapes: Shapes, said: Mapping[str, Any], inner: int) -> dict[str, Any]:
    """Give heads and their width, as far as shapes and the number of heads tell."""
    if "blocks.0.attn.q_norm.weight" in shapes:
        width = shapes["blocks.0.attn.q_norm.weight"].shape[0]
        return {"head_width": width, "heads": inner // width}
    heads = said.get("heads")
    if isinstance(heads, int) and heads > 0 and inner % heads:
        raise WeightsError(
            f"heads is {heads}, and the tensors' {inner} rows for each of q, k and v do not split "
            f"into so many; they do into {_divisors(inner)}"
        )
    return {"head_width": inner // heads} if isinstance(heads, int) and heads > 0 else {}


def _after(
    shapes: Shapes, said: Mapping[str, Any], width: int, tokens: Mapping[str, Any], asked: bool
) -> dict[str, Any]:
    """Give what comes after the blocks: final norm, pooling (was it `asked` for?) and head."""
    shown: dict[str, Any] = {"classes": 0}
    if "head.weight" in shapes:
        shown |= {"classes": shapes["head.weight"].shape[0], "head_bias": "head.bias" in shapes}
    both = "norm.weight" in shapes and "fc_norm.weight" in shapes
    if both:
        raise WeightsError("there is a norm before pooling and one after it; a plain ViT has one")
    shown["final_norm"] = (
        "pooled" if "fc_norm.weight" in shapes else "tokens" if "norm.weight" in shapes else "none"
    )
    reads = shapes.get("pre_logits.weight", shapes.get("head.weight"))
    if "attn_pool.latent" in shapes:
        shown["pooling"] = "map"
    elif reads is not None and reads.shape[1] == 2 * width:
        shown["pooling"] = "cls+mean"
    elif not tokens["class_token"]:
        shown["pooling"] = "mean_all" if said.get("pooling") == "mean_all" else "mean"
    elif "fc_norm.weight" in shapes and said.get("pooling") == "cls" and not asked:
        shown["pooling"] = "mean"  # MAE fine-tuned; a norm after the class token is picked is rare
    return shown


def _positions(
    shapes: Shapes, said: Mapping[str, Any], sizes: Sequence[Size], shown: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Give the kind of positions, the rows of the prefix and the table's image size; or questions.

    `sizes` are the image sizes that are spoken of, the likeliest of the table first.
    """
    patch = shown["patch_size"]
    prefix = shown["class_token"] + shown["distillation_token"] + shown["registers"]
    if "pos_embed" not in shapes:
        if said.get("positions") in ("sincos", "rope", "none"):
            return {"prefix_positions": 0}, []
        return {}, [
            'positions: there is no table of them; give positions="sincos", "rope" or "none", or a '
            "preset"
        ]
    rows = shapes["pos_embed"].shape[1]
    # Rows for the class token alone, for every prefix token, or for none: as each family has it.
    wanted = said.get("prefix_positions")
    choices = list(dict.fromkeys([1, prefix, 0] if wanted is None else [wanted, 1, prefix, 0]))
    choices = [before for before in choices if before <= min(prefix, rows - 1)]
    for size in sizes:
        patches = (size[0] // patch) * (size[1] // patch)
        for before in choices:
            if rows - before == patches:
                return _table(before, (size[0] // patch * patch, size[1] // patch * patch)), []
    plain = prefix == 1 and "blocks.0.ls1.gamma" not in shapes and wanted is None
    for before in [prefix] if plain else choices:  # 5 x 7 patches and one row are 6 x 6 too
        side = isqrt(rows - before)
        if side * side == rows - before:
            return _table(before, (side * patch, side * patch)), []
    return {}, [
        f"image_size: the table of positions has {rows} rows, which is no square grid; give the "
        "height and width in pixels that the weights were made for"
    ]


def _table(before: int, size: Size) -> dict[str, Any]:
    return {"positions": "learned", "prefix_positions": before, "image_size": size}


def _agree(shown: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `WeightsError` where the user's or the config file's word contradicts a tensor."""
    for source, values in sources.items():
        for name, value in values.items():
            said_of_size = name in SIZES or not source.startswith("preset")
            asked_for = name in REQUESTS and source == "given"
            if name not in shown or asked_for or not said_of_size:
                continue
            there = shown[name]
            same = there == value
            if name == "layer_scale":  # its value is of training; that there is one is not
                same = (there is None) == (value is None)
            elif name == "image_size":  # 384 pixels in patches of 14 are 378
                same = all(
                    0 <= b - a < shown["patch_size"] for a, b in zip(there, value, strict=True)
                )
            if not same:
                who = "you gave" if source == "given" else f"{source} says"
                raise WeightsError(
                    f"the tensors show {name} = {_text(there)}, {who} {_text(value)}; "
                    "leave it out, or give the weights that it belongs to"
                )


def _heads(said: Mapping[str, Any]) -> list[str]:
    """Ask for the number of heads, where nobody says it."""
    if "heads" in said:
        return []
    sizes = ("width", "depth", "patch_size")
    alike = [
        f"{name} has {config.heads}"
        for name, config in table().items()
        if all(getattr(config, size) == said[size] for size in sizes)
    ]
    hint = f" ({'; '.join(alike[:4])})" if alike else ""
    return [f"heads: how many heads attention has; give heads=, or preset={hint}"]


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise WeightsError(f"there is no {name}, without which it is no plain ViT")
    return shapes[name].shape


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, 64) + 1) if number % n == 0)


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
