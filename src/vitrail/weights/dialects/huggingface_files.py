"""Hugging Face's `config.json`, read and written (transformers 5.23)."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError, nearest
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.weights.dialect import Export, Sidecar, Writing
from vitrail.weights.dialects import huggingface_images as images
from vitrail.weights.dialects.huggingface_models import (
    ACTIVATIONS,
    MODELS,
    OTHERS,
    TOWERS,
    Model,
    model_type_for,
    ratios,
)

log = logging.getLogger("vitrail")


def sidecar(files: Mapping[str, Mapping[str, Any]]) -> Sidecar:
    """Read `config.json` and `preprocessor_config.json`, each if it is there."""
    stored = files.get("config.json", {})
    if "architecture" in stored or "format" in stored:  # timm's, or our own
        return Sidecar()
    pixels = files.get(images.FILE) or files.get(images.NESTED, {}).get("image_processor") or {}
    kind = stored.get("model_type")
    try:
        config = {} if kind is None else _read(str(kind), stored)
        patch = _pair(_tower(stored).get("patch_size", 1))[0]
        preprocess = images.read_preprocess(pixels, patch)
        names = {int(i): str(name) for i, name in (stored.get("id2label") or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            f"config.json or {images.FILE} holds what transformers does not write ({error}); "
            "fetch both again"
        ) from error
    keep = {"model_type": kind, "image_processor_type": images.processor(pixels)}
    return Sidecar(
        config=config,
        preprocess=preprocess if pixels else images.DEFAULTS.get(str(kind), {}),
        labels=_labels(names),
        keep={name: value for name, value in keep.items() if value is not None},
    )


def _labels(names: Mapping[int, str]) -> tuple[str, ...]:
    """Give the names of classes in their order; where one is missing, none: never renumbered."""
    if sorted(names) == list(range(len(names))):
        return tuple(names[i] for i in range(len(names)))
    log.warning("config.json names the classes %s ..., with gaps: not used", sorted(names)[:5])
    return ()


def _tower(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the settings of the image encoder, which CLIP and SigLIP have beside the text's."""
    if stored.get("model_type") not in TOWERS:
        return stored
    nested = ("vision_config", "vision_config_dict")  # the second overrides, in old files
    return {key: value for name in nested for key, value in (stored.get(name) or {}).items()}


def _read(kind: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Read ViTConfig fields; raise `WeightsError` for what is no plain ViT."""
    if kind not in MODELS:
        why = f": {OTHERS[kind]}" if kind in OTHERS else ""
        raise WeightsError(
            f'config.json says model_type "{kind}", which is no plain ViT that vitrail reads{why}. '
            f"transformers runs it.{nearest(kind, MODELS)}"
        )
    stored, kind = _tower(stored), TOWERS.get(kind, kind)
    model = MODELS[kind]
    config: dict[str, Any] = {
        "heads": stored.get("num_attention_heads", model.heads),
        "norm_eps": stored.get("layer_norm_eps", model.eps),
    }
    sizes = [("width", "hidden_size"), ("depth", "num_hidden_layers"), ("channels", "num_channels")]
    if "dinov2" not in kind:  # whose MLP is a multiple of the width
        sizes.append(("mlp_width", "intermediate_size"))
    for ours, theirs in sizes:
        if theirs in stored:
            config[ours] = stored[theirs]
    if "image_size" in stored and "patch_size" in stored:
        patch = _pair(stored["patch_size"])[0]
        sides = _pair(stored["image_size"])
        config["image_size"] = tuple(side // patch * patch for side in sides)
    config |= _arithmetic(kind, stored, model)
    if kind == "dinov2_with_registers":
        config["position_resize"] = PositionResize()
    if kind == "dinov3_vit":
        config |= {"positions": "rope", "rope_base": float(stored.get("rope_theta", 100.0))}
    if any("Dinov2" in n and "Class" in n for n in stored.get("architectures") or ()):
        config["pooling"] = "cls+mean"
    return config


def _arithmetic(kind: str, stored: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Read the activation; a gate's is SiLU, whatever DINOv2's files say of it."""
    if stored.get("pooler_act", "tanh") != "tanh":
        raise WeightsError(f"config.json says pooler_act = {stored['pooler_act']}, not tanh")
    if kind.startswith("dinov2") and stored.get("use_swiglu_ffn"):
        return {}
    act = stored.get("hidden_act", model.activation)
    gated = kind == "dinov3_vit" and stored.get("use_gated_mlp")
    if act not in ACTIVATIONS or (gated and ACTIVATIONS[act] != "silu"):
        known = "silu, for a gated MLP" if gated else ", ".join(ACTIVATIONS)
        raise WeightsError(f'config.json says hidden_act "{act}"; vitrail knows {known}')
    return {"activation": ACTIVATIONS[act]}


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def export(model: Writing) -> Export:
    """Give the files of a folder that transformers opens."""
    config = model.config
    kind = model_type_for(config, model.kept)
    headed = config.classes > 0 or config.pooling == "cls+mean" or config.distillation_token
    name = MODELS[kind].headed if headed else MODELS[kind].bare
    stored: dict[str, Any] = {
        "architectures": [f"{name}WithTeacher" if config.distillation_token else name],
        "model_type": kind,
    }
    settings = _settings(TOWERS.get(kind, kind), config)
    stored |= {"vision_config": settings} if kind in TOWERS else settings
    if "ForImage" in (MODELS[kind].headed or ""):
        stored["id2label"] = {str(i): label for i, label in enumerate(model.labels)}
        stored["label2id"] = {label: i for i, label in enumerate(model.labels)}
    pixels = images.write_preprocess(model.preprocess, model.kept.get("image_processor_type"))
    return Export(
        tensors=_named(model.tensors | _unused(kind, model.tensors, config), kind, config, headed),
        files={"config.json": stored, images.FILE: pixels},
    )


def _settings(kind: str, config: ViTConfig) -> dict[str, Any]:
    """Give the keys of the image encoder's configuration."""
    height, width = config.image_size
    said: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": next(act for act, ours in ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.channels,
    }
    if kind.startswith("dinov2"):
        said |= {
            "mlp_ratio": ratios(config)[config.mlp_width],
            "use_swiglu_ffn": config.mlp == "swiglu",
            "qkv_bias": config.qkv_bias == "all",
            "layerscale_value": config.layer_scale,
        }
    else:
        said["intermediate_size"] = config.mlp_width
    if kind == "dinov2_with_registers":
        said["num_register_tokens"] = config.registers
    if kind == "dinov3_vit":
        said |= {
            "num_register_tokens": config.registers,
            "rope_theta": config.rope_base,
            "query_bias": config.qkv_bias != "none",
            "key_bias": config.qkv_bias == "all",
            "value_bias": config.qkv_bias != "none",
            "proj_bias": config.proj_bias,
            "mlp_bias": config.mlp_bias,
            "use_gated_mlp": config.mlp == "swiglu",
            "layerscale_value": config.layer_scale,
        }
    if kind in ("vit", "vit_msn", "vit_mae", "ijepa", "deit"):
        said["qkv_bias"] = config.qkv_bias == "all"
    if kind == "clip_vision_model" and config.classes:
        said["projection_dim"] = config.classes
    if kind == "siglip_vision_model":
        said["vision_use_head"] = config.pooling == "map"
    return said


def _unused(kind: str, tensors: Mapping[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Give tensors that a class wants to find, though they change nothing that it answers."""
    like, width = next(iter(tensors.values())), config.width
    extra: dict[str, Tensor] = {}
    if kind.startswith("dinov2"):
        extra["embeddings.mask_token"] = like.new_zeros(1, width)
    if kind == "dinov3_vit":
        extra["embeddings.mask_token"] = like.new_zeros(1, 1, width)
        if not config.registers:
            extra["embeddings.register_tokens"] = like.new_zeros(1, 0, width)
    if kind == "clip":  # its classifier reads the tokens before this norm
        extra["post_layernorm.weight"] = like.new_ones(width)
        extra["post_layernorm.bias"] = like.new_zeros(width)
    return extra


def _named(
    tensors: Mapping[str, Tensor], kind: str, config: ViTConfig, headed: bool
) -> dict[str, Tensor]:
    """Put the encoder's prefix before all names but the heads'."""
    heads = ("classifier.", "cls_classifier.", "distillation_classifier.", "visual_projection.")
    prefix = MODELS[kind].prefix if headed else ""
    return {
        name if name.startswith(heads) else prefix + name: tensor
        for name, tensor in tensors.items()
    }
