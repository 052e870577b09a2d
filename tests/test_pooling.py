from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import TINY, randomize
from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset
from vitrail.model.vit import AttentionPooling, ClassificationHead, Tokens, ViT

MAP = {"class_token": False, "prefix_positions": 0, "pooling": "map"}


def norm(x: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    """Give LayerNorm of x, written out."""
    centred = x - x.mean(dim=-1, keepdim=True)
    x = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


@pytest.mark.parametrize("final_norm", ["tokens", "pooled", "none"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "mean_all", "cls+mean"])
def test_tokens_become_features_by_the_pooling_s_name(
    images: Tensor, pooling: Any, final_norm: Any
) -> None:
    config = TINY.replace(pooling=pooling, final_norm=final_norm, registers=3, norm_eps=1e-3)
    model = randomize(ViT(config))
    weights = model.state_dict()
    x = model.blocks(model.embed(images)[0])
    if final_norm == "tokens":
        x = norm(x, weights, "norm", 1e-3)

    features = {
        "cls": x[:, 0],
        "mean": x[:, 4:].mean(dim=1),  # neither the class token nor the registers
        "mean_all": x.mean(dim=1),
        "cls+mean": torch.cat([x[:, 0], x[:, 4:].mean(dim=1)], dim=-1),
    }[pooling]
    if final_norm == "pooled":
        features = norm(features, weights, "fc_norm", 1e-3)

    torch.testing.assert_close(model.pool(model.tokens(images)), features)
    by_hand = features @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(images), by_hand)


def test_attention_pooling_asks_all_tokens_one_learned_question() -> None:
    pool = randomize(AttentionPooling(TINY.replace(activation="gelu_tanh")))
    x = torch.randn(2, 35, 24)
    weights = pool.state_dict()

    question = pool.latent[0, 0] @ pool.q.weight.T + pool.q.bias  # D
    keys, values = (x @ pool.kv.weight.T + pool.kv.bias).split(24, dim=-1)
    answers = []
    for head in range(6):
        part = slice(4 * head, 4 * head + 4)
        scores = keys[..., part] @ question[part] / 4**0.5
        answers.append(torch.einsum("bn,bnd->bd", scores.softmax(dim=-1), values[..., part]))
    pooled = torch.cat(answers, dim=-1) @ pool.proj.weight.T + pool.proj.bias
    by_hand = pooled + pool.mlp(norm(pooled, weights, "norm", 1e-6))

    assert pool(x).shape == (2, 24)
    torch.testing.assert_close(pool(x), by_hand)


def test_the_model_s_attention_pooling_sees_the_patches_alone(images: Tensor) -> None:
    model = randomize(ViT(TINY.replace(pooling="map", registers=3)))
    tokens = model.tokens(images)
    assert model.attn_pool is not None

    other = Tokens(torch.randn_like(tokens.prefix), tokens.patches, tokens.grid)

    torch.testing.assert_close(model(images), model.head(model.attn_pool(tokens.patches)))
    assert torch.equal(model.pool(other), model.pool(tokens))


@pytest.mark.parametrize("classes", [0, 9])
def test_pre_logits_are_a_tanh_layer_before_the_head(images: Tensor, classes: int) -> None:
    config = TINY.replace(pre_logits=True, pooling="cls+mean", classes=classes)
    model = randomize(ViT(config))
    tokens = model.tokens(images)
    assert model.pre_logits is not None

    pooled = torch.cat([tokens.prefix[:, 0], tokens.patches.mean(dim=1)], dim=-1)
    by_hand = torch.tanh(pooled @ model.pre_logits.weight.T + model.pre_logits.bias)

    assert by_hand.shape == (2, 24)
    torch.testing.assert_close(model(images), model.head(by_hand))


@pytest.mark.parametrize("changes", [{}, {"pooling": "mean"}, {"pooling": "cls+mean"}, MAP])
def test_without_classes_the_model_gives_features(images: Tensor, changes: dict[str, Any]) -> None:
    config = TINY.replace(classes=0, **changes)
    model = randomize(ViT(config)).eval()

    features = model(images)

    assert features.shape == (2, config.features)
    assert torch.equal(features, model.pool(model.tokens(images)))


def test_a_head_may_have_no_bias(images: Tensor) -> None:
    model = randomize(ViT(TINY.replace(head_bias=False)))

    by_hand = model.pool(model.tokens(images)) @ model.get_parameter("head.weight").T

    torch.testing.assert_close(model(images), by_hand)


def test_a_head_is_as_wide_as_what_it_reads() -> None:
    assert ClassificationHead(TINY).weight.shape == (9, 24)
    assert ClassificationHead(TINY.replace(pooling="cls+mean")).weight.shape == (9, 48)


@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
@pytest.mark.parametrize("classes", [0, 9])
def test_two_heads_are_averaged_where_a_teacher_was(
    images: Tensor, classes: int, final_norm: Any
) -> None:
    config = TINY.replace(distillation_token=True, classes=classes, final_norm=final_norm)
    model = randomize(ViT(config))
    tokens = model.tokens(images)
    assert model.head_dist is not None

    by_class, by_teacher = (model.fc_norm(token) for token in tokens.prefix.unbind(dim=1))
    by_hand = (model.head(by_class) + model.head_dist(by_teacher)) / 2

    assert by_hand.shape == (2, classes or 24)
    torch.testing.assert_close(model(images), by_hand)


def blog(model: ViT, images: Tensor) -> Tensor:
    """Give the logits of the post's ViT: mean over all tokens, then the norm, then the classes."""
    config, weights = model.config, model.state_dict()
    p, eps = config.patch_size, config.norm_eps

    cut = images.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 4, 5, 1)  # B h w s1 s2 C
    matrix = weights["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    x = cut.flatten(1, 2).flatten(2) @ matrix.T + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"].expand(len(x), 1, -1), x], dim=1) + weights["pos_embed"]
    for i in range(config.depth):
        block = {key: weights[f"blocks.{i}.{key}"] for key in model.blocks[0].state_dict()}
        qkv = norm(x, block, "norm1", eps) @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
        q, k, v = qkv.unflatten(-1, (3, config.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = torch.softmax(q @ k.mT / config.head_width**0.5, dim=-1) @ v
        attended = attended.transpose(1, 2).flatten(2)
        x = x + attended @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        hidden = norm(x, block, "norm2", eps) @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        x = x + F.gelu(hidden) @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
    features = norm(x.mean(dim=1), weights, "fc_norm", eps)
    return features @ weights["head.weight"].T + weights["head.bias"]


def test_the_post_s_own_model_is_what_the_post_draws(images: Tensor) -> None:
    config = preset("blog-b16").replace(image_size=(40, 56), patch_size=8, width=24, depth=2)
    model = randomize(ViT(config))

    assert config.heads == 8
    torch.testing.assert_close(model(images), blog(model, images))


def test_the_default_model_is_the_paper_s_and_not_the_post_s(images: Tensor) -> None:
    model = randomize(ViT(TINY))
    tokens = model.tokens(images)

    torch.testing.assert_close(model(images), model.head(tokens.prefix[:, 0]))
    assert ViTConfig().pooling == "cls"
