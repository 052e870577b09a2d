import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY, randomize
from vitrail.errors import ConfigError
from vitrail.model.config import DropRates
from vitrail.model.vit import Encoder, EncoderBlock, FeedForward, StochasticDepth, ViT

B, N, D = 2, 5, TINY.width
BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, N, D)


@pytest.mark.parametrize("activation", BY_HAND)
def test_feed_forward_widens_bends_and_narrows(x: Tensor, activation: Any) -> None:
    mlp = randomize(FeedForward(TINY.replace(activation=activation)))

    hidden = BY_HAND[activation](x @ mlp.fc1.weight.T + mlp.fc1.bias)
    by_hand = hidden @ mlp.fc2.weight.T + mlp.fc2.bias

    assert hidden.shape == (B, N, 72)
    torch.testing.assert_close(mlp(x), by_hand)


def test_swiglu_gates_the_second_half_by_the_silu_of_the_first(x: Tensor) -> None:
    mlp = randomize(FeedForward(TINY.replace(mlp="swiglu", activation="silu")))
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    gate, up = hidden[..., :72], hidden[..., 72:]

    by_hand = (BY_HAND["silu"](gate) * up) @ mlp.fc2.weight.T + mlp.fc2.bias

    torch.testing.assert_close(mlp(x), by_hand)


@pytest.mark.parametrize("layer_scale", [None, 1e-5])
def test_a_block_normalises_before_and_adds_after(x: Tensor, layer_scale: float | None) -> None:
    block = randomize(EncoderBlock(TINY.replace(layer_scale=layer_scale)))
    scale1, scale2 = (1.0, 1.0) if layer_scale is None else (block.ls1.gamma, block.ls2.gamma)

    middle = x + scale1 * block.attn(block.norm1(x))
    by_hand = middle + scale2 * block.mlp(block.norm2(middle))

    torch.testing.assert_close(block(x), by_hand)


def test_layer_scale_starts_at_the_config_s_value_in_a_block_that_stands_alone() -> None:
    block = EncoderBlock(TINY.replace(layer_scale=0.25))

    for scale in (block.ls1, block.ls2):
        assert torch.equal(scale.get_parameter("gamma"), torch.full((24,), 0.25))


def test_nothing_is_added_in_place(x: Tensor) -> None:
    block = randomize(EncoderBlock(TINY))
    before = x.clone()

    with torch.no_grad():
        block(x)
    leaf = x.clone().requires_grad_()
    block(leaf).square().sum().backward()  # raises where a leaf was changed in place

    assert torch.equal(x, before)
    assert leaf.grad is not None and (leaf.grad != 0).all()


@pytest.mark.parametrize("part", [EncoderBlock, Encoder])
def test_a_mask_passes_through_to_attention(
    x: Tensor, part: type[EncoderBlock] | type[Encoder]
) -> None:
    module = randomize(part(TINY))
    allowed = torch.tensor([True, True, False, True, False])
    other = torch.where(allowed[:, None], x, 100 * torch.randn_like(x))

    seen, unseen = (module(tokens, allowed.expand(N, N)) for tokens in (x, other))

    assert torch.equal(seen[:, allowed], unseen[:, allowed])
    assert not torch.allclose(module(x)[:, allowed], seen[:, allowed])


def test_an_encoder_is_its_blocks_one_after_the_other(x: Tensor) -> None:
    encoder = randomize(Encoder(TINY))

    by_hand = encoder[1](encoder[0](x))

    torch.testing.assert_close(encoder(x), by_hand)


def test_a_slice_of_the_blocks_is_an_encoder_of_them() -> None:
    encoder = randomize(Encoder(TINY.replace(depth=3))).eval()
    x = torch.randn(2, 5, TINY.width)

    first, last = encoder[:2], encoder[-1]

    assert isinstance(first, Encoder) and len(first) == 2 and first[1] is encoder[1]
    assert torch.equal(last(first(x)), encoder(x))


def test_an_encoder_is_twelve_blocks_deep() -> None:
    with torch.device("meta"):
        assert len(Encoder()) == 12


@pytest.mark.parametrize("rate", [field.name for field in dataclasses.fields(DropRates)])
def test_each_drop_rate_acts_in_training_and_never_at_inference(images: Tensor, rate: str) -> None:
    plain = randomize(ViT(TINY)).eval()
    dropping = ViT(TINY, DropRates(**{rate: 0.5}))
    dropping.load_state_dict(plain.state_dict())

    assert torch.equal(dropping.eval()(images), plain(images))
    assert not torch.allclose(dropping.train()(images), plain(images))
    torch.testing.assert_close(plain.train()(images), plain.eval()(images))


@pytest.mark.parametrize("kind", ["plain", "swiglu"])
def test_mlp_dropout_falls_on_hidden_units(kind: Any) -> None:
    mlp = randomize(FeedForward(TINY.replace(mlp=kind), DropRates(mlp=0.25))).train()
    with torch.no_grad():
        mlp.fc2.weight[:, 1:] = 0.0  # the output shows the first hidden unit alone
        mlp.fc2.bias.zero_()
    x = torch.randn(1, 1, D)

    outputs = mlp(x.expand(1, 2000, D))[0]

    dropped = (outputs == 0).all(dim=-1)
    kept = mlp.eval()(x)[0].expand(2000, D) / 0.75
    torch.testing.assert_close(outputs[~dropped], kept[~dropped])
    assert abs(dropped.float().mean() - 0.25) < 0.05  # 5 deviations of 2,000 draws


def test_residual_dropout_falls_on_what_is_added(x: Tensor) -> None:
    block = randomize(EncoderBlock(TINY, DropRates(residual=0.5))).train()
    with torch.no_grad():
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
    branch = block.attn(block.norm1(x))

    added = block(x) - x

    dropped = added.abs() < 1e-6
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(added[~dropped], 2 * branch[~dropped])


def test_stochastic_depth_drops_whole_branches_of_an_image_and_scales_the_rest() -> None:
    block = randomize(EncoderBlock(TINY, depth_rate=0.2)).train()
    x = torch.randn(1, N, D).expand(64, N, D)

    def after(x: Tensor, attention: bool, mlp: bool) -> Tensor:
        x = x + attention * block.attn(block.norm1(x)) / 0.8
        return x + mlp * block.mlp(block.norm2(x)) / 0.8

    cases = torch.stack([after(x[0:1], a, m)[0] for a in (False, True) for m in (False, True)])
    distance = (block(x)[:, None] - cases).abs().amax(dim=(2, 3))  # image, case

    assert (distance.amin(dim=1) < 1e-5).all()
    assert set(distance.argmin(dim=1).tolist()) == {0, 1, 2, 3}


def test_stochastic_depth_rises_with_depth() -> None:
    encoder = Encoder(TINY.replace(depth=5), DropRates(stochastic_depth=0.4))

    rates = [module.rate for module in encoder.modules() if isinstance(module, StochasticDepth)]

    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_patch_dropout_keeps_a_share_of_the_patches_and_the_whole_prefix(images: Tensor) -> None:
    model = randomize(ViT(TINY.replace(registers=3), DropRates(patches=0.4)))
    whole, _, _ = model.eval().embed(images)

    kept, _, grid = model.train().embed(images)

    assert grid == (5, 7)
    assert kept.shape == (2, 1 + 3 + 21, 24)
    assert torch.equal(kept[:, :4], whole[:, :4])
    for some, all_ in zip(kept[:, 4:], whole[:, 4:], strict=True):
        same = (some[:, None] == all_).all(dim=-1)  # kept, patch
        assert (same.sum(dim=1) == 1).all() and (same.sum(dim=0) <= 1).all()


def test_patch_dropout_keeps_each_patch_with_its_rotation(images: Tensor) -> None:
    config = TINY.replace(positions="rope", heads=3)
    model = randomize(ViT(config, DropRates(patches=0.4)))
    whole, rotations, _ = model.eval().embed(images)

    kept, kept_rotations, _ = model.train().embed(images)

    assert rotations is not None and kept_rotations is not None
    assert kept_rotations.shape == (2, 2, 1, 21, 8)
    for image in range(2):
        same = (kept[image, 1:, None] == whole[image, 1:]).all(dim=-1)
        patch = same.int().argmax(dim=1)
        assert torch.equal(kept_rotations[:, image, 0], rotations[:, patch])
    assert model(images).isfinite().all()


def test_patch_dropout_leaves_at_least_one_patch(images: Tensor) -> None:
    model = ViT(TINY, DropRates(patches=0.99)).train()

    assert model.embed(images)[0].shape == (2, 2, 24)


def test_a_rate_that_drops_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout mlp is 1.0; it should be from 0 to below 1"):
        DropRates(mlp=1.0)
