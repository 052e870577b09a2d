"""OpenAI's CLIP and open_clip's own image towers.

openai/CLIP, `clip/model.py`; open_clip, `src/open_clip/transformer.py`. OpenAI's files run with
quick GELU; open_clip's say so in `open_clip_config.json`, where there is one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitrail.weights.dialect import CLIP as CLIP_STATISTICS
from vitrail.weights.dialect import Dialect, Export, Stores, Writing, has, plain
from vitrail.weights.dialects.open_clip_files import sidecar
from vitrail.weights.rules import ROWS, TRANSPOSED, VECTOR, layer, rule

_BLOCK = "transformer.resblocks.{i}"


def _openai(stores: Stores, known: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's files carry the size of their images; its code makes every head 64 wide."""
    if "beside.input_resolution" not in stores:
        return {}
    heads = known.get("heads", max(stores["class_embedding"].shape[0] // 64, 1))
    return {"heads": heads, "activation": known.get("activation", "quick_gelu")}


def _export(model: Writing) -> Export:
    return Export(tensors={f"visual.{name}": tensor for name, tensor in model.tensors.items()})


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
    preprocess=lambda config: CLIP_STATISTICS,
    unsure={
        "activation": "quick_gelu is taken, as in OpenAI's models; most of open_clip's own have "
        'gelu: activation="gelu"'
    },
    sidecar=sidecar,
    holds=lambda config: {
        **plain(config),
        "norm_eps": 1e-5,
        "activation": ("quick_gelu", "gelu"),
        "patch_bias": False,
        "head_bias": False,
        "layer_scale": config.layer_scale,
        "pre_norm": True,
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
    tells=_openai,
)
