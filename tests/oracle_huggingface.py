"""transformers: folders that `save_pretrained` writes, v4 names on disk, and v5 names in memory."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conftest import randomize
from oracles import (
    CLASSES,
    DEPTH,
    HEADS,
    HIDDEN,
    NATIVE,
    PATCH,
    SQUARE,
    WIDTH,
    Answer,
    Build,
    Oracle,
    Size,
)

SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "patch_size": PATCH,
}
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "eos_token_id": 39,
}
PROJECTION = 20


def folder(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def shards(model: Any, path: Path) -> Path:
    model.save_pretrained(path, max_shard_size="8KB")
    return path


def in_memory(model: Any, path: Path) -> Path:
    """Write what `torch.save(model.state_dict())` gives, v5's names, beside the same config."""
    model.save_pretrained(path)
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


LEFT = r"mask_token|decoder\.|text_model\.|text_projection|logit_"  # what no image encoder needs
BACKBONE = r"^(vit|deit|dinov2|dinov2_with_registers|vision_model)\."


def bare(weights: Mapping[str, Tensor], left: str = LEFT) -> dict[str, Tensor]:
    names = {name: re.sub(BACKBONE, "", name) for name in weights}
    return {new: weights[name] for name, new in names.items() if not re.match(left, new)}


def make(
    name: str, dtype: torch.dtype, config: dict[str, Any], answer: Callable[..., Answer]
) -> tuple[nn.Module, Callable[[Tensor], Answer]]:
    import transformers

    kind = getattr(transformers, name)
    settings = dict(config)
    more = {key: settings.pop(key) for key in ("add_pooling_layer",) if key in settings}
    if "text_config" in settings or "logit_scale_init_value" in settings:
        settings = {"projection_dim": PROJECTION, **settings}
    model = kind(kind.config_class(**settings, attn_implementation="sdpa"), **more)
    model = randomize(model).eval().to(dtype)
    return model, partial(answer, model)


def build(
    name: str,
    config: dict[str, Any],
    answer: Callable[..., Answer],
    dtype: torch.dtype,
    *,
    size: Size = NATIVE,
    others: tuple[Size, ...] = (),
    write: Callable[[Any, Path], Path] = folder,
    only_float32: bool = False,
) -> Oracle:
    """Build the class `name`; with `only_float32`, it resizes positions in no other precision."""
    model, says = make(name, dtype, config, answer)
    return Oracle(
        dialect="huggingface",
        write=partial(write, model),
        answer=says,
        size=size,
        others=() if only_float32 and dtype != torch.float32 else others,
        # The pooling by attention that this class has and does not use.
        bare=partial(bare, left=LEFT + r"|head\.") if name.startswith("SiglipFor") else bare,
    )


def classifier(model: Any, images: Tensor, **how: Any) -> Answer:
    """Answer for a model whose backbone ends in its final norm."""
    backbone = getattr(model, model.base_model_prefix)
    return Answer(model(images, **how).logits, backbone(images, **how).last_hidden_state)


def features(model: Any, images: Tensor, **how: Any) -> Answer:
    out = model(images, **how)
    return Answer(out.pooler_output, out.last_hidden_state)


def class_token(model: Any, images: Tensor, **how: Any) -> Answer:
    tokens = model(images, **how).last_hidden_state
    return Answer(tokens[:, 0], tokens)


def mae(model: Any, images: Tensor, **how: Any) -> Answer:
    """Answer with sorted noise and no masking, so that no patch moves or is lost."""
    encoder = getattr(model, "vit", model)
    encoder.embeddings.config.mask_ratio = 0.0
    patches = images.shape[2] // PATCH * (images.shape[3] // PATCH)
    noise = torch.arange(patches, dtype=torch.float64).expand(len(images), -1)
    return class_token(encoder, images, noise=noise, **how)


def clip(model: Any, images: Tensor, **how: Any) -> Answer:
    """Answer with the norm that transformers gives to the pooled token alone on all of them."""
    if hasattr(model, "get_image_features"):  # the whole CLIP
        out = model.get_image_features(images, **how)
        pooled, tokens, vision = out.pooler_output, out.last_hidden_state, model.vision_model
    elif hasattr(model, "visual_projection"):
        out, vision = model(images, **how), model.vision_model
        pooled, tokens = out.image_embeds, out.last_hidden_state
    else:
        out, vision = model(images, **how), model
        pooled, tokens = out.pooler_output, out.last_hidden_state
    return Answer(pooled, vision.post_layernorm(tokens))


def siglip(model: Any, images: Tensor, **how: Any) -> Answer:
    out = model.get_image_features(images, **how)
    return Answer(out.pooler_output, out.last_hidden_state)


def siglip_classifier(model: Any, images: Tensor, **how: Any) -> Answer:
    tokens = model.vision_model(images, **how).last_hidden_state
    return Answer(model(images, **how).logits, tokens)


def registers_classifier(model: Any, images: Tensor) -> Answer:
    return classifier(model, images)


def resizing(answer: Callable[..., Answer]) -> Callable[..., Answer]:
    return partial(answer, interpolate_pos_encoding=True)


OBLONG = {**SIZES, "image_size": NATIVE}
# transformers takes the table that it resizes for a square one.
EVEN = {**SIZES, "image_size": SQUARE[0]}
LABELS = {"num_labels": CLASSES}
WIDER = (NATIVE, (64, 80))
DINO = {k: v for k, v in EVEN.items() if k != "intermediate_size"} | {"mlp_ratio": 3}
DINO3 = {
    **SIZES,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "image_size": SQUARE[0],
}
WHOLE_CLIP = {"text_config": TEXT, "vision_config": {**EVEN, "projection_dim": PROJECTION}}
WHOLE_SIGLIP = {"text_config": TEXT, "vision_config": EVEN}

_resizes = partial(partial, size=SQUARE, others=WIDER)
_dino = partial(partial, size=SQUARE, others=WIDER, only_float32=True)

CASES: dict[str, Build] = {
    "ViT": partial(build, "ViTForImageClassification", {**OBLONG, **LABELS}, classifier),
    "ViT, other sizes": _resizes(
        build, "ViTForImageClassification", {**EVEN, **LABELS}, resizing(classifier)
    ),
    "ViT without qkv bias": partial(
        build, "ViTForImageClassification", {**OBLONG, **LABELS, "qkv_bias": False}, classifier
    ),
    "ViT, another GELU and eps": partial(
        build,
        "ViTForImageClassification",
        {**OBLONG, **LABELS, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
        classifier,
    ),
    "ViT, pooler": partial(build, "ViTModel", OBLONG, features),
    "ViT, neither pooler nor head": partial(
        build, "ViTModel", {**OBLONG, "add_pooling_layer": False}, class_token
    ),
    "DeiT": partial(build, "DeiTForImageClassification", {**OBLONG, **LABELS}, classifier),
    "DeiT, distilled": partial(
        build, "DeiTForImageClassificationWithTeacher", {**OBLONG, **LABELS}, classifier
    ),
    "DeiT, distilled, other sizes": _resizes(
        build,
        "DeiTForImageClassificationWithTeacher",
        {**EVEN, **LABELS},
        resizing(classifier),
    ),
    "MAE": partial(build, "ViTMAEModel", OBLONG, mae),
    "MAE, other sizes": _resizes(build, "ViTMAEModel", EVEN, resizing(mae)),
    "MAE with decoder": partial(
        build,
        "ViTMAEForPreTraining",
        {
            **EVEN,  # it knows no other when it makes its decoder's positions
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 40,
        },
        mae,
        size=SQUARE,
    ),
    "DINOv2": _dino(build, "Dinov2Model", DINO, class_token),
    "DINOv2, classifier": _dino(
        build, "Dinov2ForImageClassification", {**DINO, **LABELS}, classifier
    ),
    "DINOv2, SwiGLU": _dino(build, "Dinov2Model", {**DINO, "use_swiglu_ffn": True}, class_token),
    "DINOv2, registers": _dino(
        build, "Dinov2WithRegistersModel", {**DINO, "num_register_tokens": 3}, class_token
    ),
    "DINOv2, registers, classifier": _dino(
        build,
        "Dinov2WithRegistersForImageClassification",
        {**DINO, **LABELS, "num_register_tokens": 3},
        classifier,
    ),
    "DINOv2, registers, SwiGLU": _dino(
        build,
        "Dinov2WithRegistersModel",
        {**DINO, "num_register_tokens": 3, "use_swiglu_ffn": True},
        class_token,
    ),
    "DINOv3": _resizes(build, "DINOv3ViTModel", DINO3, class_token),
    "DINOv3, gated": _resizes(
        build, "DINOv3ViTModel", {**DINO3, "use_gated_mlp": True, "hidden_act": "silu"}, class_token
    ),
    "DINOv3, key bias": _resizes(build, "DINOv3ViTModel", {**DINO3, "key_bias": True}, class_token),
    "DINOv3, another base": _resizes(
        build, "DINOv3ViTModel", {**DINO3, "rope_theta": 30.0, "layer_norm_eps": 1e-3}, class_token
    ),
    "DINOv3 without biases of the MLP": _resizes(
        build, "DINOv3ViTModel", {**DINO3, "mlp_bias": False, "proj_bias": False}, class_token
    ),
    "DINOv3 without qkv bias": _resizes(
        build, "DINOv3ViTModel", {**DINO3, "query_bias": False, "value_bias": False}, class_token
    ),
    "CLIP, vision": _resizes(build, "CLIPVisionModel", EVEN, resizing(clip)),
    "CLIP, projection": _resizes(
        build,
        "CLIPVisionModelWithProjection",
        {**EVEN, "projection_dim": PROJECTION},
        resizing(clip),
    ),
    "CLIP, exact GELU": _resizes(
        build,
        "CLIPVisionModelWithProjection",
        {**EVEN, "projection_dim": PROJECTION, "hidden_act": "gelu"},
        resizing(clip),
    ),
    "CLIP, whole": _resizes(build, "CLIPModel", WHOLE_CLIP, resizing(clip)),
    "SigLIP, vision": _resizes(build, "SiglipVisionModel", EVEN, resizing(features)),
    "SigLIP, whole": _resizes(build, "SiglipModel", WHOLE_SIGLIP, resizing(siglip)),
    "SigLIP, classifier": _resizes(
        build,
        "SiglipForImageClassification",
        {"vision_config": EVEN, "text_config": TEXT, **LABELS},
        resizing(siglip_classifier),
    ),
}
