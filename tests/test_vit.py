from typing import Any

import pytest
import torch
from torch import Tensor

import vitrail
from conftest import TINY, randomize
from vitrail.errors import ConfigError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import Tokens, ViT

SIGLIP: dict[str, Any] = {
    "class_token": False,
    "prefix_positions": 0,
    "pooling": "map",
    "activation": "gelu_tanh",
}
DINO3: dict[str, Any] = {
    "registers": 3,
    "positions": "rope",
    "heads": 3,
    "layer_scale": 1e-5,
    "qkv_bias": "no_key",
    "mlp": "swiglu",
    "activation": "silu",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "the default": {},
    "DINOv3": DINO3,
    "SigLIP": SIGLIP,
    "CLIP": {"pre_norm": True, "patch_bias": False, "head_bias": False, "qk_norm": True},
    "simple ViT": {"positions": "sincos", "pooling": "mean", "patch_norms": True},
    "the post": {"pooling": "mean_all", "final_norm": "pooled"},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))


def test_vit_is_vit_b16() -> None:
    with torch.device("meta"):
        model = vitrail.ViT()

        logits = model(torch.empty(2, 3, 224, 224))

    assert model.config == ViTConfig()
    assert logits.shape == (2, 1000)
    assert sum(tensor.numel() for tensor in model.parameters()) == 85_798_656 + 769_000


def test_positions_are_one_more_than_patches() -> None:
    pos_embed = ViT(TINY).pos_embed

    assert pos_embed is not None
    assert pos_embed.shape == (1, (40 // 8) * (56 // 8) + 1, 24)


def test_what_enters_the_first_block_is_class_token_and_patches_with_positions(
    images: Tensor,
) -> None:
    model = randomize(ViT(TINY))
    assert model.pos_embed is not None and model.cls_token is not None

    x, rotation, grid = model.embed(images)

    assert (x.shape, rotation, grid) == ((2, 36, 24), None, (5, 7))
    torch.testing.assert_close(x[0, 0], model.cls_token[0, 0] + model.pos_embed[0, 0])
    torch.testing.assert_close(x[:, 1:], model.patch_embed(images) + model.pos_embed[:, 1:])


@pytest.mark.parametrize("prefix_positions", range(6))
def test_the_first_prefix_tokens_have_positions(images: Tensor, prefix_positions: int) -> None:
    config = TINY.replace(
        distillation_token=True, registers=3, prefix_positions=prefix_positions, pre_norm=True
    )
    model = randomize(ViT(config))
    weights = model.state_dict()

    x, _, _ = model.embed(images)

    prefix = torch.cat([weights["cls_token"], weights["dist_token"], weights["reg_token"]], dim=1)
    prefix[:, :prefix_positions] += weights["pos_embed"][:, :prefix_positions]
    patches = model.patch_embed(images) + weights["pos_embed"][:, prefix_positions:]
    by_hand = model.norm_pre(torch.cat([prefix.expand(2, 5, 24), patches], dim=1))
    torch.testing.assert_close(x, by_hand)


@variants
@pytest.mark.parametrize("size", [(40, 56), (64, 24), (8, 8)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_of_any_size_that_the_patch_divides_runs(
    changes: dict[str, Any], size: tuple[int, int], batch: int
) -> None:
    config = TINY.replace(**changes)
    model = randomize(ViT(config))
    images = torch.randn(batch, 3, *size)

    logits = model(images)

    tokens = model.tokens(images)
    grid = (size[0] // 8, size[1] // 8)
    assert logits.shape == (batch, 9) and logits.isfinite().all()
    assert tokens.prefix.shape == (batch, config.prefix, 24)
    assert tokens.patches.shape == (batch, grid[0] * grid[1], 24)
    assert tokens.grid == grid
    # Sums of another batch may be rounded another way, but no image sees its neighbour.
    torch.testing.assert_close(model(images[-1:]), logits[-1:], rtol=1e-4, atol=1e-5)


def test_tokens_are_normalised_where_the_norm_comes_before_pooling(images: Tensor) -> None:
    model = randomize(ViT(TINY))
    last = model.blocks(model.embed(images)[0])

    tokens = model.tokens(images)

    assert isinstance(tokens, Tokens)
    torch.testing.assert_close(torch.cat(tokens[:2], dim=1), model.norm(last))


@variants
def test_layers_give_one_tokens_for_each_block_that_is_asked_for(
    images: Tensor, changes: dict[str, Any]
) -> None:
    model = randomize(ViT(TINY.replace(**changes)))
    x, rotation, grid = model.embed(images)
    first = model.norm(model.blocks[0](x, rotation=rotation))

    layers = model.tokens(images, layers=[-1, 0, 1])

    assert isinstance(layers, list) and len(layers) == 3
    for last in (layers[0], layers[2]):
        for one, other in zip(last, model.tokens(images), strict=True):
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.cat(layers[1][:2], dim=1), first)
    assert layers[1].grid == grid


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_does_not_exist_is_told_with_those_that_do(images: Tensor, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"no layer {layer}: the blocks are 0 to 1"):
        ViT(TINY).tokens(images, layers=[0, layer])


@pytest.mark.parametrize("name", ["the default", "DINOv3", "SigLIP"])
@pytest.mark.slow
def test_compiled_is_eager(images: Tensor, name: str) -> None:
    model = randomize(ViT(TINY.replace(**VARIANTS[name]))).eval()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(compiled(images), model(images))


@variants
def test_bfloat16_is_float32_rounded(images: Tensor, changes: dict[str, Any]) -> None:
    model = randomize(ViT(TINY.replace(**changes)))
    exact = model(images)

    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    rounded = model.bfloat16()(images.bfloat16())

    assert rounded.dtype == torch.bfloat16
    for logits in (mixed, rounded):
        # Two blocks of roundings by 2^-9 each; a wrong number would be off by the whole.
        assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


@variants
def test_every_parameter_gets_a_gradient(images: Tensor, changes: dict[str, Any]) -> None:
    model = randomize(ViT(TINY.replace(**changes)))

    model(images).square().sum().backward()

    for name, tensor in model.named_parameters():
        assert tensor.grad is not None and (tensor.grad != 0).any(), name


def test_tensors_have_timm_s_names() -> None:
    whole = TINY.replace(
        depth=1,
        distillation_token=True,
        registers=3,
        pre_norm=True,
        qk_norm=True,
        layer_scale=1e-5,
    )

    names = """
        cls_token dist_token reg_token pos_embed
        patch_embed.proj.weight patch_embed.proj.bias norm_pre.weight norm_pre.bias
        blocks.0.norm1.weight blocks.0.norm1.bias
        blocks.0.attn.qkv.weight blocks.0.attn.qkv.bias
        blocks.0.attn.q_norm.weight blocks.0.attn.q_norm.bias
        blocks.0.attn.k_norm.weight blocks.0.attn.k_norm.bias
        blocks.0.attn.proj.weight blocks.0.attn.proj.bias blocks.0.ls1.gamma
        blocks.0.norm2.weight blocks.0.norm2.bias
        blocks.0.mlp.fc1.weight blocks.0.mlp.fc1.bias blocks.0.mlp.fc2.weight blocks.0.mlp.fc2.bias
        blocks.0.ls2.gamma
        norm.weight norm.bias head.weight head.bias head_dist.weight head_dist.bias
    """
    assert list(ViT(whole).state_dict()) == names.split()


def test_attention_pooling_and_the_pooled_norm_have_timm_s_names() -> None:
    config = TINY.replace(**SIGLIP, final_norm="pooled", depth=0, qkv_bias="no_key")

    names = """
        pos_embed patch_embed.proj.weight patch_embed.proj.bias
        attn_pool.latent attn_pool.q.weight attn_pool.q.bias attn_pool.kv.weight attn_pool.kv.bias
        attn_pool.proj.weight attn_pool.proj.bias attn_pool.norm.weight attn_pool.norm.bias
        attn_pool.mlp.fc1.weight attn_pool.mlp.fc1.bias
        attn_pool.mlp.fc2.weight attn_pool.mlp.fc2.bias
        fc_norm.weight fc_norm.bias head.weight head.bias
    """
    assert list(ViT(config).state_dict()) == names.split()
