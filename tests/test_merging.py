"""Fewer tokens, by merging: against loops over single tokens, and where nothing may change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import TINY, randomize
from families import FAMILIES, VIT, build
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import engine, torch_engine
from vitrail.errors import ConfigError
from vitrail.inference.embed import embed
from vitrail.inference.predict import predict
from vitrail.model.config import ViTConfig
from vitrail.model.merging import match, merged_tokens
from vitrail.model.vit import EncoderBlock, Tokens, ViT
from vitrail.weights.bundle import Bundle

GRID = (3, 5)  # of the families' tiny models
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)


def some_images() -> Tensor:
    return torch.randn(2, 3, 12, 20)


def logits(model: ViT, images: Tensor, merge: int) -> Tensor:
    return model.logits(merged_tokens(model, images, merge))


def pairs_of(keys: Tensor, count: int) -> list[tuple[int, int]]:
    """Match the tokens of one image, n d, one by one: (odd, even) of the `count` closest pairs."""
    found = []
    for odd in range(1, len(keys), 2):
        alike, even = max(
            (float(F.cosine_similarity(keys[odd], keys[even], dim=0)), even)
            for even in range(0, len(keys), 2)
        )
        found.append((alike, odd, even))
    return [(odd, even) for _, odd, even in sorted(found, reverse=True)[:count]]


def by_loops(model: ViT, images: Tensor, merge: int) -> Tensor:
    """Merge as ToMe does, with a list of patches for each token and every duplicate written out."""
    whole, rotation, grid = model.embed(images)
    prefix, n = model.config.prefix, whole.shape[1] - model.config.prefix
    answers = []
    for x in whole:
        patches = [[i] for i in range(n)]  # of each token behind the prefix
        for block in model.blocks:
            assert isinstance(block, EncoderBlock)
            turn = rotation
            if rotation is not None:
                turn = torch.stack([rotation[:, own].mean(dim=1) for own in patches], dim=1)
            q, k, v = block.attn.split(block.norm1(x[None]), turn)
            sizes = torch.tensor([1] * prefix + [len(own) for own in patches])
            keys, values = (tensor.repeat_interleave(sizes, dim=2) for tensor in (k, v))
            x = x + block.ls1(block.attn.mix(q, keys, values))[0]
            count = min(merge, len(patches) // 2)
            into = dict(pairs_of(k[0, :, prefix:].mean(dim=0), count))
            rows = {i: x[prefix + i] * len(patches[i]) for i in range(len(patches))}
            for odd, even in into.items():
                rows[even] = rows[even] + rows[odd]
                patches[even] = patches[even] + patches[odd]
            left = [i for i in range(1, len(patches), 2) if i not in into]
            left += range(0, len(patches), 2)
            x = torch.cat([x[:prefix], torch.stack([rows[i] / len(patches[i]) for i in left])])
            patches = [patches[i] for i in left]
            x = x + block.ls2(block.mlp(block.norm2(x)))
        token_of = {patch: prefix + i for i, own in enumerate(patches) for patch in own}
        back = [*range(prefix), *(token_of[patch] for patch in range(n))]
        answers.append(model.logits(model.finish(x[back][None], grid)))
    return torch.cat(answers)


@pytest.mark.parametrize("config", FAMILIES)
def test_where_nothing_merges_the_numbers_are_the_model_s(config: ViTConfig) -> None:
    model, images = build(config), some_images()

    with torch.no_grad():
        assert torch.equal(logits(model, images, 0), model(images))
        for layer in (0, -1):
            found, (wanted,) = merged_tokens(model, images, 0, layer), model.tokens(images, [layer])
            assert torch.equal(found.prefix, wanted.prefix)
            assert torch.equal(found.patches, wanted.patches)
            assert found.grid == GRID


@pytest.mark.parametrize("merge", [1, 2, 99])
@pytest.mark.parametrize("config", FAMILIES)
def test_merging_is_what_loops_over_tokens_do(config: ViTConfig, merge: int) -> None:
    model, images = build(config).double(), some_images().double()

    with torch.no_grad():
        found, wanted = logits(model, images, merge), by_loops(model, images, merge)
        plain = model(images)

    # In float64 no two cosines are so near that rounding could swap them; rotations are float32.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("n", "count"), [(2, 1), (5, 2), (15, 3), (16, 8)])
def test_the_closest_pairs_of_odd_and_even_tokens_share_a_place(n: int, count: int) -> None:
    keys = torch.randn(4, n, 6)

    places = match(keys, count)

    for image, place in zip(keys, places.tolist(), strict=True):
        into = dict(pairs_of(image, count))
        left = [i for i in range(1, n, 2) if i not in into] + list(range(0, n, 2))
        assert place == [left.index(into.get(i, i)) for i in range(n)]


def test_half_of_the_patches_merge_at_most_and_no_prefix_token_ever() -> None:
    model = build(VIT.replace(registers=2))

    with torch.no_grad():
        found = merged_tokens(model, some_images(), 10**9)

    # 15 patches, then 8, 4 and 2.
    assert [len(image.unique(dim=0)) for image in found.patches] == [2, 2]
    assert [len(image.unique(dim=0)) for image in found.prefix] == [3, 3]


@pytest.mark.parametrize("config", FAMILIES)
def test_tokens_that_are_alike_merge_without_a_trace(config: ViTConfig) -> None:
    model = build(config.replace(positions="none"))
    one, other = torch.randn(2, 3, 4, 4)
    rows = [torch.cat([other if (y, x) == (1, 2) else one for x in range(5)], 2) for y in range(3)]
    image = torch.cat(rows, dim=1)[None]

    with torch.no_grad():
        found, plain = logits(model, image, 2), model(image)
        uneven = logits(model, image, 99)  # the one that is another merges too

    # What is left is rounding: sums of fewer numbers, and a weighted mean of equal ones.
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(uneven, plain, rtol=1e-4, atol=1e-4)


def test_each_image_of_a_batch_merges_by_itself() -> None:
    model, images = build(VIT).double(), torch.randn(4, 3, 12, 20).double()

    with torch.no_grad():
        together = logits(model, images, 3)
        alone = torch.cat([logits(model, image[None], 3) for image in images])

    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_merges(dtype: str) -> None:
    bundle = a_bundle()
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)

    plain = engine(bundle, dtype=dtype, device="cpu").run(pixels)
    runs = torch_engine(bundle, dtype, "cpu", merge=3)

    found = runs.run(pixels)
    assert (found.dtype, found.shape) == (torch.float32, plain.shape)
    assert not torch.equal(found, plain)
    tokens = runs.apply(lambda images: runs.tokens(images).patches, pixels)
    # 35 patches less 3 in each of 2 blocks.
    assert [len(image.unique(dim=0)) for image in tokens] == [29] * 3


def test_in_bfloat16_tokens_that_are_alike_merge_without_a_trace_too() -> None:
    grey = torch.full((1, 3, 40, 56), 99, dtype=torch.uint8)
    bundle = a_bundle(positions="none")

    plain, merged = (
        engine(bundle, dtype="bfloat16", device="cpu", merge=merge).run(grey) for merge in (0, 9)
    )

    # bfloat16 keeps 8 bits of a number; logits here are of the order of 1.
    torch.testing.assert_close(merged, plain, atol=0.05, rtol=0)


def a_bundle(**changes: Any) -> Bundle:
    model = randomize(ViT(TINY.replace(registers=2, **changes))).eval()
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


@pytest.mark.parametrize("layer", [None, 0])
def test_predictions_and_embeddings_merge_on_demand(layer: int | None) -> None:
    bundle = a_bundle()
    images = bundle.preprocess.normalize(torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    with torch.no_grad():
        tokens: Tokens = merged_tokens(bundle.model, images, 3, layer)
        likely = bundle.model.logits(merged_tokens(bundle.model, images, 3)).softmax(dim=1)

    how: dict[str, Any] = {"device": "cpu", "merge": 3}
    answers = predict(bundle, list(PICTURES), top=1, **how)
    mean, patches = (
        embed(bundle, list(PICTURES), tokens=kind, layer=layer, **how)
        for kind in ("mean", "patches")
    )

    probabilities = torch.tensor([answer.top[0].probability for answer in answers])
    torch.testing.assert_close(probabilities, likely.amax(dim=1))
    np.testing.assert_allclose(patches, tokens.patches, rtol=1e-5, atol=1e-5)
    # Every patch counts once, however many tokens are left.
    np.testing.assert_allclose(mean, tokens.patches.mean(dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merge", [-1, 1.5, True, "8"])
def test_a_number_of_patches_that_is_none_is_refused(merge: Any) -> None:
    bundle = a_bundle()

    with pytest.raises(ConfigError, match=r"merge is .*; it should be a whole number of patches"):
        engine(bundle, device="cpu", merge=merge)
    with pytest.raises(ConfigError, match=r"merge is "):
        merged_tokens(bundle.model, torch.zeros(1, 3, 40, 56), merge)
    with pytest.raises(ConfigError, match="there is no layer 2: the blocks are 0 to 1"):
        merged_tokens(bundle.model, torch.zeros(1, 3, 40, 56), 1, layer=2)


def test_a_model_without_blocks_has_nothing_to_merge() -> None:
    bundle = a_bundle(depth=0)

    merged, plain = (
        engine(replace(bundle), device="cpu", merge=merge).run(torch.ones(1, 3, 40, 56))
        for merge in (2, 0)
    )

    assert torch.equal(merged, plain)
