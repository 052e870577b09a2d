"""Attention, rollout and relevance: exact, for every kind of plain ViT, and no more than asked."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, VIT, build
from vitrail.errors import ConfigError
from vitrail.explaining.attention import (
    Layer,
    Rollout,
    Rows,
    attention_of,
    readout,
    watching,
    weights,
)
from vitrail.explaining.propagation import conserving
from vitrail.explaining.relevance import relevance, taken_for
from vitrail.model import vit
from vitrail.model.config import ViTConfig
from vitrail.model.kernels import attend
from vitrail.model.vit import AttentionPooling, EncoderBlock, MultiHeadAttention, ViT

HEADS, GRID, PATCHES = 2, (3, 5), 15
ONES = pytest.approx(1, abs=1e-5)


@pytest.fixture
def photos() -> Tensor:
    return torch.randn(2, 3, 12, 20)


def every_token(config: ViTConfig) -> list[list[int]]:
    return [[i] for i in range(config.prefix + PATCHES)]


def written_out(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let every attention be written out, and give the list of its weights, B K N N, to come."""
    seen: list[Tensor] = []

    def attending(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        scores = torch.einsum("bknd,bkmd->bknm", q, k) / q.shape[-1] ** 0.5
        attention = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        if attention.requires_grad:
            attention.retain_grad()
        seen.append(attention)
        return attention @ v

    monkeypatch.setattr(vit, "attend", attending)
    return seen


@pytest.mark.parametrize("config", FAMILIES)
@torch.no_grad()
def test_attention_sums_to_one_and_reproduces_what_the_layer_gives(
    config: ViTConfig, photos: Tensor
) -> None:
    model = build(config)
    layers: list[Layer] = [*range(config.depth)]
    rows, given, values = Rows(range(HEADS), every_token(config)), {}, {}
    if config.pooling == "map":
        layers.append("pool")

    def keep(layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        values[layer] = v

    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention | AttentionPooling):
            module.proj.register_forward_hook(
                lambda _, __, out, name=name: given.__setitem__(name, out)
            )
    with watching(model, layers, rows), watching(model, layers, keep):
        model(photos)

    assert list(rows.maps) == layers
    for layer, attention in rows.maps.items():
        pool = layer == "pool"
        tokens = PATCHES if pool else config.prefix + PATCHES
        assert attention.shape == (2, HEADS, 1 if pool else tokens, tokens)
        assert attention.sum(dim=-1).min() == ONES and attention.sum(dim=-1).max() == ONES
        heads = (attention @ values[layer]).transpose(1, 2).flatten(2)
        by_hand = attention_of(model, layer).proj(heads)
        wanted = given["attn_pool" if pool else f"blocks.{layer}.attn"]
        # 1e-5 is what is promised: the fused kernel sums in another order.
        torch.testing.assert_close(by_hand, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", FAMILIES)
def test_watching_a_model_changes_nothing_in_it(config: ViTConfig, photos: Tensor) -> None:
    model = build(config)
    before = model(photos)

    with watching(model, [0, 2], Rows([0], [[0]])):
        watched = model(photos)
    relevance(model, photos, 1, [0, 1, 2], [0, 1])

    assert torch.equal(watched, before) and torch.equal(model(photos), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_fails_is_no_longer_watched(photos: Tensor) -> None:
    model = build(VIT)

    with pytest.raises(ConfigError), watching(model, [0], Rows([0], [[0]])):
        model(photos[:, :2])

    assert not any(m._forward_hooks for m in model.modules())


def test_heads_and_queries_are_those_asked_for(photos: Tensor) -> None:
    model = build(VIT)
    everything, some = Rows([0, 1], every_token(model.config)), Rows([1], [[0], [3, 4, 9]])

    with watching(model, [0, 1, 2], everything), watching(model, [2], some):
        model(photos)

    assert list(some.maps) == [2]
    whole = everything.maps[2][:, 1:]
    wanted = torch.stack([whole[:, :, 0], whole[:, :, [3, 4, 9]].mean(dim=2)], dim=2)
    torch.testing.assert_close(some.maps[2], wanted)


def test_no_more_is_computed_and_kept_than_was_asked_for(
    photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, computed, read = build(VIT), [], []

    def counted(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        found = weights(q, k, mask)
        computed.append(tuple(found.shape))
        read.extend([weakref.ref(q), weakref.ref(k)])
        return found

    monkeypatch.setattr("vitrail.explaining.attention.weights", counted)
    rows, rollout = Rows([1], [[0], [4]]), Rollout([0, 1])
    with torch.inference_mode():
        with watching(model, [1], rows):
            model(photos)
        assert computed == [(2, 1, 2, 16)]
        assert not any(ref() is not None for ref in read)
        assert sum(m.untyped_storage().nbytes() for m in rows.maps.values()) == 2 * 2 * 16 * 4
        with watching(model, [0, 1, 2], rollout):
            model(photos)

    assert computed[1:] == [(2, 2, 16, 16)] * 3
    assert not any(ref() is not None for ref in read)
    assert {name: value.shape for name, value in vars(rollout).items() if name == "flow"} == {
        "flow": (2, 16, 16)
    }


@pytest.mark.parametrize("shape", [(16, 16), (2, 1, 1, 16), (2, 1, 16, 16), (2, 2, 16, 16)])
@pytest.mark.parametrize("heads", [[0, 1], [1]])
@torch.no_grad()
def test_a_mask_is_looked_through(shape: tuple[int, ...], heads: list[int], photos: Tensor) -> None:
    model = build(VIT)
    x, rotation, _ = model.embed(photos)
    mask = torch.rand(shape) < 0.5
    mask[..., 4] = True
    if shape[-2] > 1:
        mask[..., 7, :] = False  # token 7 sees nothing
    queries, block = [[0], [7], [3, 9]], model.blocks[0]
    assert isinstance(block, EncoderBlock)
    rows, rollout = Rows(heads, queries), Rollout(heads)

    with watching(model, [0], rows), watching(model, [0], rollout):
        block(x, mask, rotation)

    q, k, _ = block.attn.split(block.norm1(x), rotation)
    # What the kernel gives for v = 1 is its weights.
    whole = attend(q, k, torch.eye(16).expand(2, 2, 16, 16), mask)[:, heads]
    wanted = torch.stack([whole[:, :, tokens].mean(dim=2) for tokens in queries], dim=2)
    torch.testing.assert_close(rows.maps[0], wanted)
    assert (rows.maps[0][:, :, 1] == 0).all() == (shape[-2] > 1)
    mixed = whole.mean(dim=1) + torch.eye(16)
    torch.testing.assert_close(rollout.flow, mixed / mixed.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("config", FAMILIES)
@torch.no_grad()
def test_rollout_is_the_product_of_half_attention_and_half_itself(
    config: ViTConfig, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rollout = build(config), Rollout([0, 1])
    with watching(model, [0, 1, 2], rollout):
        model(photos)
    seen = written_out(monkeypatch)

    model(photos)

    wanted = np.eye(config.prefix + PATCHES)[None].repeat(2, axis=0)
    for attention in seen[:3]:
        wanted = (0.5 * attention.double().numpy().mean(axis=1) + 0.5 * np.eye(len(wanted[0]))) @ (
            wanted
        )
    assert rollout.flow is not None
    np.testing.assert_allclose(rollout.flow, wanted, atol=1e-6)
    np.testing.assert_allclose(rollout.flow.sum(dim=-1), 1, atol=1e-6)


def held(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Hold attention and deviations as constants, and give the list of attention, B K N N, to come.

    Each attention is a leaf: what it is made of cannot matter, and what it does has a gradient.
    """
    leaves: list[Tensor] = []

    def attending(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        leaves.append(weights(q, k).detach().requires_grad_())
        return leaves[-1] @ v

    def norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
        mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, correction=0, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt().detach() * self.weight + self.bias

    monkeypatch.setattr(vit, "attend", attending)
    monkeypatch.setattr(nn.LayerNorm, "forward", norm)
    return leaves


def slow_relevance(model: ViT, image: Tensor, target: int, leaves: list[Tensor]) -> np.ndarray:
    """Give the relevance of each token by the paper's equation 5, one number after the other."""
    found = np.zeros(model.config.prefix + PATCHES)
    model(image[None])[0, target].backward()
    for attention in leaves:
        assert attention.grad is not None
        a, slope = attention[0].detach().double(), attention.grad[0].double()
        first = len(found) - a.shape[-1]  # a pooling looks at patches alone
        for head in range(HEADS):
            for query in range(a.shape[1]):
                for token in range(a.shape[2]):
                    spoken = float(a[head, query, token] * slope[head, query, token])
                    found[first + token] += max(spoken, 0) / HEADS
    model.zero_grad()
    return found


@pytest.mark.parametrize("config", FAMILIES)
def test_relevance_is_what_all_queries_take_by_the_paper_s_equation(
    config: ViTConfig, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(config)
    found, logits = relevance(model, photos, 3, [0, 1, 2], [0, 1])
    torch.testing.assert_close(logits, model(photos))

    for image, rows in zip(photos, found, strict=True):
        with monkeypatch.context() as patch:
            leaves = held(patch)
            wanted = slow_relevance(model, image, 3, leaves)
        assert wanted.max() > 0
        np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("config", FAMILIES)
def test_without_holding_the_gradient_is_the_model_s_own(
    config: ViTConfig, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(config)
    taken, _ = taken_for(model, photos, 3, [0, 1, 2], [0, 1])
    found = dict(taken)
    seen = written_out(monkeypatch)

    model(photos.clone().requires_grad_())[:, 3].sum().backward()

    assert list(found) == [0, 1, 2, "pool"][: len(seen)]
    for each, attention in zip(found.values(), seen, strict=True):
        assert attention.grad is not None
        wanted = (attention * attention.grad).detach().clamp_min(0).mean(dim=1)
        torch.testing.assert_close(each, wanted, rtol=1e-3, atol=1e-5 * float(wanted.max()))


@pytest.mark.parametrize("config", FAMILIES)
def test_a_conserving_model_divides_its_logit_among_what_enters(
    config: ViTConfig, photos: Tensor
) -> None:
    model, entered = build(config.replace(pre_logits=False)), []
    for name, value in model.named_parameters():
        # A bias has a share that no token has, and what a feed-forward bends adds up to less.
        if name.endswith("bias") or "mlp.fc2" in name:
            nn.init.zeros_(value)
    model.blocks[0].register_forward_pre_hook(lambda _, read: entered.append(read[0]))

    with conserving(model):
        logits = model(photos.clone().requires_grad_())
    (slope,) = torch.autograd.grad(logits[:, 3].sum(), entered)

    shares = (slope * entered[0]).sum(dim=(1, 2))
    assert shares.abs().min() > 0
    torch.testing.assert_close(shares, logits[:, 3], rtol=1e-3, atol=1e-4)


def test_relevance_is_as_long_as_the_logits_are(photos: Tensor) -> None:
    model = build(VIT)
    before, _ = relevance(model, photos, 3, [0, 1, 2], [0, 1])

    with torch.no_grad():  # a temperature of 1/100 changes no answer
        model.get_parameter("head.weight").mul_(100)
    after, _ = relevance(model, photos, 3, [0, 1, 2], [0, 1])

    torch.testing.assert_close(after, 100 * before)


def test_what_a_patch_is_to_others_that_the_class_token_reads_counts(photos: Tensor) -> None:
    model, mask = build(VIT), torch.ones(16, 16, dtype=torch.bool)
    mask[0, 1:] = False  # until the last layer the class token sees itself alone
    for i in (0, 1):
        model.blocks[i].register_forward_pre_hook(lambda _, read: (read[0], mask, *read[2:]))

    early, _ = relevance(model, photos, 3, [0, 1], [0, 1])

    assert (early[:, 1:] > 0).all()


def test_relevance_of_no_class_in_particular_is_that_of_each_image_s_likeliest(
    photos: Tensor,
) -> None:
    model = build(VIT)
    found, logits = relevance(model, photos, None, [0, 1, 2], [0, 1])
    best = logits.argmax(dim=1).tolist()

    for i in range(2):
        alone, _ = relevance(model, photos[i : i + 1], best[i], [0, 1, 2], [0, 1])
        torch.testing.assert_close(found[i], alone[0])
    other, _ = relevance(model, photos, (best[0] + 1) % 5, [0, 1, 2], [0, 1])
    assert not torch.allclose(found[0], other[0])


def test_relevance_needs_neither_trainable_weights_nor_a_graph_around_it(photos: Tensor) -> None:
    model = build(VIT)
    wanted, _ = relevance(model, photos, 1, [0, 1, 2], [0, 1])
    model.requires_grad_(False)

    with torch.no_grad():
        found, _ = relevance(model, photos, 1, [0, 1, 2], [0, 1])

    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("config", FAMILIES)
@torch.no_grad()
def test_what_the_head_reads_is_its_pooling(config: ViTConfig, photos: Tensor) -> None:
    if config.pooling == "map":
        pytest.skip("its shares are attention's, and differ from image to image")
    model = build(config.replace(final_norm="none", head_bias=False, pre_logits=False))
    tokens = model.tokens(photos)
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    if model.head_dist is not None:
        model.head_dist.load_state_dict(model.head.state_dict())
    if config.pooling == "cls+mean":  # two halves of the head: one matrix for both
        first, second = model.get_parameter("head.weight").chunk(2, dim=1)
        second.copy_(first)

    share = readout(model, x.shape[1])

    matrix = model.get_parameter("head.weight")[:, : config.width]
    by_share = torch.einsum("n,bnd->bd", share, x) @ matrix.T
    times = 2 if config.pooling == "cls+mean" else 1
    assert share.sum() == ONES
    torch.testing.assert_close(times * by_share, model(photos), rtol=1e-4, atol=1e-4)
