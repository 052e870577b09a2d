"""OpenAI's CLIP and open_clip's own image towers.

openai/CLIP, `clip/model.py`; open_clip, `src/open_clip/transformer.py`. OpenAI's files run with
quick GELU; open_clip's say so in `open_clip_config.json`, where there is one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.weights.dialect import CLIP as CLIP_STATISTICS
from vitrail.weights.dialect import Dialect, Export, Sidecar, Stores, has
from vitrail.weights.rules import ROWS, TRANSPOSED, VECTOR, layer, rule

_BLOCK = "transformer.resblocks.{i}"


def _heads(stores: Stores, known: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's files carry the size of their images, and its code makes every head 64 wide."""
    if "heads" in known or "beside.input_resolution" not in stores:
        return {}
    return {"heads": max(stores["class_embedding"].shape[0] // 64, 1)}


def _sidecar(files: Mapping[str, Mapping[str, Any]]) -> Sidecar:
    """Read `open_clip_config.json`: the image tower's settings, and its preprocessing."""
    stored = files.get("open_clip_config.json", {})
    model = stored.get("model_cfg", stored)
    vision = model.get("vision_cfg")
    if not isinstance(vision, dict):
        return Sidecar()
    config: dict[str, Any] = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    if "width" in vision:
        config["heads"] = vision["width"] // vision.get("head_width", 64)
    said: dict[str, Any] = {}
    if "image_size" in vision:
        size = vision["image_size"]
        config["image_size"] = tuple(size) if isinstance(size, list) else (size, size)
        said["size"] = config["image_size"]
    known = stored.get("preprocess_cfg", {})
    for name in ("mean", "std"):
        if name in known:
            said[name] = tuple(known[name])
    if known.get("interpolation") in ("bicubic", "bilinear"):
        said["interpolation"] = known["interpolation"]
    modes = {"shortest": "shortest", "squash": "square", "longest": "pad"}
    said["resize"] = modes.get(known.get("resize_mode", "shortest"), "shortest")
    return Sidecar(config=config, preprocess=said)


def _export(
    tensors: dict[str, Tensor],
    config: ViTConfig,
    preprocess: Preprocess,
    labels: tuple[str, ...],
    kept: Any,
) -> Export:
    return Export(tensors={f"visual.{name}": tensor for name, tensor in tensors.items()})


TOWER = Dialect(
    name="clip",
    variant="a bare tower of CLIP's",
    marks=has(
        "class_embedding", r"conv1\.weight", r"transformer\.resblocks\.0\.attn\.in_proj_weight"
    ),
    rules=(
        rule("cls_token", "class_embedding", VECTOR),
        rule("pos_embed", "positional_embedding", ROWS),
        *layer("patch_embed.proj", "conv1"),
        *layer("norm_pre", "ln_pre"),
        *layer("blocks.{i}.norm1", f"{_BLOCK}.ln_1"),
        rule("blocks.{i}.attn.qkv.weight", f"{_BLOCK}.attn.in_proj_weight"),
        rule("blocks.{i}.attn.qkv.bias", f"{_BLOCK}.attn.in_proj_bias"),
        *layer("blocks.{i}.attn.proj", f"{_BLOCK}.attn.out_proj"),
        rule("blocks.{i}.ls1.gamma", f"{_BLOCK}.ls_1.gamma"),
        *layer("blocks.{i}.norm2", f"{_BLOCK}.ln_2"),
        *layer("blocks.{i}.mlp.fc1", f"{_BLOCK}.mlp.c_fc"),
        *layer("blocks.{i}.mlp.fc2", f"{_BLOCK}.mlp.c_proj"),
        rule("blocks.{i}.ls2.gamma", f"{_BLOCK}.ls_2.gamma"),
        *layer("norm", "ln_post"),
        rule("head.weight", "proj", TRANSPOSED),
    ),
    # Position tables: open_clip resizes them as timm does; OpenAI's code has no rule of its own.
    home={"norm_eps": 1e-5, "activation": "quick_gelu", "pooling": "cls"},
    preprocess=CLIP_STATISTICS,
    sidecar=_sidecar,
    holds=lambda config: {
        "mlp": "plain",
        "norm_eps": 1e-5,
        "activation": ("quick_gelu", "gelu"),
        "head_width": config.width // config.heads,
        "qkv_bias": "all",
        "patch_bias": False,
        "patch_norms": False,
        "proj_bias": True,
        "mlp_bias": True,
        "head_bias": False,
        "qk_norm": False,
        "class_token": True,
        "distillation_token": False,
        "registers": 0,
        "positions": "learned",
        "prefix_positions": 1,
        "pre_norm": True,
        "pre_logits": False,
        "final_norm": "tokens",
        "pooling": "cls",
    },
    export=_export,
)

# A whole CLIP: the image tower under `visual.`, the text tower beside it, under the same names.
CLIP = replace(
    TOWER,
    variant="OpenAI's CLIP, open_clip",
    marks=has(r"visual\.class_embedding", r"visual\.conv1\.weight"),
    spellings=((r"^(?!visual\.)", "beside."), (r"^visual\.", "")),
    leave=(
        (r"beside\.(input_resolution|context_length|vocab_size|logit_\w+)", "settings of the pair"),
        (r"beside\..*", "the text tower"),
    ),
    tells=_heads,
)
