"""timm's `config.json`, read and written: an architecture's name, arguments, preprocessing."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.errors import WeightsError
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import Export, Sidecar, Writing

ROPE = {
    "positions": "rope",
    "rope_base": 100.0,
    "norm_eps": 1e-5,
    "prefix_positions": 0,
    "image_size": (256, 256),
}
POOLING = {"token": "cls", "avg": "mean", "map": "map"}
# Arguments of timm's constructor that change the arithmetic, with the values that we have too.
SETTINGS = {
    "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "silu"),
    "norm_layer": ("layernorm",),
    "global_pool": ("token", "avg", "map", ""),
}

# The others that are understood: sizes, what tensors show, and what changes training alone.
KNOWN = {
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads",
    "mlp_ratio", "qkv_bias", "qk_norm", "proj_bias", "init_values", "class_token", "pos_embed",
    "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "pool_include_prefix",
    "dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate", "patch_drop_rate",
    "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init",
    "rope_temperature", "swiglu_mlp", "swiglu_align_to", "num_reg_tokens", "use_fc_norm",
}  # fmt: skip

# Architectures whose tensors look like a plain ViT's, and that are none.
OTHERS = (
    (r"_rope_|^vit_pe_|^eva02_", "its positions turn q and k in a way of their own"),
    (r"_rpn_|^eva02_enormous", "its norms come after the branches (post-norm)"),
    (r"_sapiens2$", "its heads share keys and values"),
    (r"^test_vit3$", "it pools registers too"),
    (r"relpos", "its attention has relative positions"),
    (r"^beit|^swin|^cait|^xcit|^volo|^sam|_hybrid|_r\d+_s", "it is of another kind"),
    (r"^naflexvit", "its images keep their own aspect"),
)

# What the name of a timm architecture says and no tensor shows: heads, and arithmetic that is not
# `HOME`. The first pattern that matches decides on each field.
ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_base_patch16_gap", {"heads": 16}),
    (r"_base_patch\d+_plus", {"heads": 14}),
    (r"_(huge_plus|hugeplus)_.*dinov3", {"heads": 20}),
    (r"_7b_.*dinov3", {"heads": 32}),
    (r"giant_.*(dinov2|tipsv2|radio|lingbot)", {"heads": 24}),
    (r"_intern300m_|_(large|huge|giant|giantopt|gigantic|so400m)_|_large$", {"heads": 16}),
    (r"_so150m2_", {"heads": 13}),
    (r"_so150m_", {"heads": 14}),
    (r"_betwixt_", {"heads": 10}),
    (r"_(medium|mediumd)_", {"heads": 8}),
    (r"_(little|dlittle)_", {"heads": 5}),
    (r"_(wee|dwee|xsmall)_", {"heads": 4}),
    (r"_tiny_|^test_vit[34]$", {"heads": 3}),
    (r"^test_vit2?$", {"heads": 2}),
    (r"_(small|small_plus|splus)_|_small$", {"heads": 6}),
    (r"_base_|_base$", {"heads": 12}),
    (r"^eva_.*_clip_", {"norm_eps": 1e-6}),
    (r"_clip_|dinov3", {"norm_eps": 1e-5}),
    (r"quickgelu", {"activation": "quick_gelu"}),
    (
        r"base_patch32_siglip|large_patch16_siglip(_gap)?_512|so400m_patch16_siglip|giantopt_",
        {"activation": "gelu_tanh"},
    ),
    (r"dinov3", ROPE),
)


# The width that goes with a name: heads that a name says are not those of other weights.
WIDTHS = (
    (r"_base_patch\d+_plus_", 896),
    (r"giant_.*(dinov2|tipsv2|radio|lingbot)|_giantopt_", 1536),
    (r"_giant_", 1408),
    (r"_gigantic_", 1664),
    (r"_huge_|_huge_plus_", 1280),
    (r"_so400m_", 1152),
    (r"_large_|_large$|_intern300m_", 1024),
    (r"_small_|_small$|_small_plus_", 384),
    (r"_tiny_", 192),
    (r"_base_|_base$", 768),
)


def sidecar(files: Mapping[str, Mapping[str, Any]]) -> Sidecar:
    """Read a timm `config.json`: an architecture's name, its arguments, the preprocessing."""
    stored = files.get("config.json", {})
    if not isinstance(stored.get("architecture"), str):
        return Sidecar()
    name, cfg = stored["architecture"], stored.get("pretrained_cfg") or stored
    config = {"position_resize": PositionResize(), **from_name(name)}
    args = stored.get("model_args") or {}
    config |= _from_args(args)
    pooling = args.get("global_pool", stored.get("global_pool"))
    if pooling in POOLING:
        config["pooling"] = POOLING[pooling]
    if args.get("pool_include_prefix"):
        if pooling != "avg":
            raise WeightsError(
                f'timm pools "{pooling}" over the prefix tokens too: no ViT here does'
            )
        config["pooling"] = "mean_all"
    if "img_size" not in args and "input_size" in cfg:
        config["image_size"] = tuple(cfg["input_size"][-2:])
    labels = cfg.get("label_names") or stored.get("label_names") or ()
    return Sidecar(config=config, preprocess=_preprocess(cfg), labels=tuple(map(str, labels)))


def from_name(architecture: str) -> dict[str, Any]:
    """Give what the name of an architecture says; one that is no plain ViT is a `WeightsError`."""
    fields: dict[str, Any] = {}
    for pattern, why in OTHERS:
        if re.search(pattern, architecture):
            raise WeightsError(f'timm\'s "{architecture}" is no plain ViT: {why}')
    for pattern, said in ARCHITECTURES:
        if re.search(pattern, architecture):
            fields = {**said, **fields}
    width = next((width for pattern, width in WIDTHS if re.search(pattern, architecture)), None)
    return fields if width is None else {**fields, "width": width}


def _from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Read timm's constructor arguments, as far as no tensor shows them."""
    fields: dict[str, Any] = {}
    for ours, theirs in (("heads", "num_heads"), ("width", "embed_dim"), ("depth", "depth")):
        if theirs in args:
            fields[ours] = args[theirs]
    if "img_size" in args:
        size = args["img_size"]
        fields["image_size"] = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if unknown := sorted(args.keys() - KNOWN - SETTINGS.keys()):
        raise WeightsError(
            f"config.json gives timm {', '.join(unknown)}, which no plain ViT has here"
        )
    for name, known in SETTINGS.items():
        if args.get(name) not in (None, *known):
            raise WeightsError(
                f'config.json gives timm {name}="{args[name]}", which no plain ViT has here: '
                f"{', '.join(known)}"
            )
    if args.get("act_layer") is not None:
        fields["activation"] = args["act_layer"]
    if args.get("rope_temperature"):
        fields["rope_base"] = float(args["rope_temperature"])
    return fields


def _preprocess(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Read a `pretrained_cfg`; timm resizes the shorter side to floor(size / crop_pct)."""
    said: dict[str, Any] = {}
    for name in ("mean", "std"):
        if name in cfg:
            said[name] = tuple(float(value) for value in cfg[name])
    if "interpolation" in cfg:
        said["interpolation"] = cfg["interpolation"]
    if "input_size" in cfg:
        said["size"] = tuple(cfg["input_size"][-2:])
        short = min(said["size"])
        said["crop"] = short / math.floor(short / cfg.get("crop_pct", 0.875))
    modes = {"center": "shortest", "squash": "square", "border": "pad"}
    said["resize"] = modes.get(cfg.get("crop_mode", "center"), "shortest")
    return said


def model_args(config: ViTConfig) -> dict[str, Any]:
    """Give the arguments with which timm's VisionTransformer is this model."""
    pools = {value: name for name, value in POOLING.items()} | {"mean_all": "avg"}
    halves = 2 if config.mlp == "swiglu" else 1  # timm counts gate and up
    args: dict[str, Any] = {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": halves * config.mlp_width / config.width,
        "qkv_bias": config.qkv_bias != "none",
        "qk_norm": config.qk_norm,
        "proj_bias": config.proj_bias,
        "init_values": config.layer_scale,
        "class_token": config.class_token,
        "pos_embed": "learn" if config.positions == "learned" else "none",
        "no_embed_class": config.prefix_positions == 0,
        "reg_tokens": config.registers,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm != "none",
        "fc_norm": config.final_norm == "pooled",
        "global_pool": pools[config.pooling],
        "pool_include_prefix": config.pooling == "mean_all",
    }
    if config.mlp == "plain":
        args["act_layer"] = config.activation
    if config.distillation_token:
        for name in ("class_token", "pool_include_prefix", "fc_norm", "no_embed_class"):
            del args[name]
    return args


def eva_args(config: ViTConfig) -> dict[str, Any]:
    """Give the arguments with which timm's Eva is this model (DINOv3)."""
    return {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_width / config.width,
        "qkv_bias": config.qkv_bias == "no_key",
        "init_values": config.layer_scale,
        "rope_temperature": config.rope_base,
        "swiglu_mlp": config.mlp == "swiglu",
        "swiglu_align_to": 1,  # gate and up as two layers, as in the released files
        "num_reg_tokens": config.registers,
        "use_fc_norm": config.final_norm == "pooled",
        "global_pool": "token" if config.pooling == "cls" else "avg",
    }


def architecture(config: ViTConfig) -> str:
    """Give the timm architecture whose fixed settings `model_args` cannot say."""
    if config.positions == "rope":
        return "vit_base_patch16_dinov3"
    if config.distillation_token:
        return "deit_base_distilled_patch16_224"
    if config.mlp == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if config.norm_eps == 1e-5 else "vit_base_patch16_224"


def export(model: Writing) -> Export:
    config = model.config
    args = eva_args(config) if config.positions == "rope" else model_args(config)
    modes = {"shortest": "center", "square": "squash", "pad": "border"}
    cfg = {
        "num_classes": config.classes,
        "input_size": [config.channels, *model.preprocess.size],
        "crop_pct": _crop_pct(model.preprocess),
        "crop_mode": modes[model.preprocess.resize],
        "interpolation": model.preprocess.interpolation,
        "mean": list(model.preprocess.mean),
        "std": list(model.preprocess.std),
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if config.distillation_token else "head",
        "pool_size": None,
        "fixed_input_size": config.positions == "learned",
    }
    if model.labels:
        cfg["label_names"] = list(model.labels)
    stored = {
        "architecture": architecture(config),
        "num_classes": config.classes,
        "num_features": config.width,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": cfg,
    }
    return Export(tensors=model.tensors, files={"config.json": stored})


def _crop_pct(preprocess: Preprocess) -> float:
    """Give the share that timm's floor(size / share) brings back to the same resized side."""
    short = min(preprocess.size)
    resized = round(short / preprocess.crop)
    shares = [round(preprocess.crop, digits) for digits in range(2, 8)]
    shares.append(short / (resized + 0.5))  # between the shares that give this side and the next
    return next(share for share in shares if math.floor(short / share) == resized)
