import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from conftest import TINY
from vitrail.errors import ConfigError
from vitrail.model import vit
from vitrail.model.config import DropRates, ViTConfig
from vitrail.model.presets import preset, presets
from vitrail.model.shapes import Summary, summary
from vitrail.model.vit import (
    AttentionPooling,
    ClassificationHead,
    Encoder,
    EncoderBlock,
    FeedForward,
    LayerScale,
    MultiHeadAttention,
    PatchEmbedding,
    ViT,
)

NO_CLASS: dict[str, Any] = {"class_token": False, "prefix_positions": 0}
CONFIGS = {
    "plain": TINY,
    "swiglu": TINY.replace(mlp="swiglu", activation="silu"),
    "qk_norm": TINY.replace(qk_norm=True),
    "layer_scale": TINY.replace(layer_scale=1e-5),
    "registers": TINY.replace(registers=3),
    "deit3": TINY.replace(prefix_positions=0, layer_scale=1e-6),
    "distilled": TINY.replace(distillation_token=True, prefix_positions=2),
    "distilled, pooled norm": TINY.replace(distillation_token=True, final_norm="pooled"),
    "distilled, no head": TINY.replace(distillation_token=True, classes=0),
    "rope": TINY.replace(positions="rope", prefix_positions=0, registers=4, qkv_bias="no_key"),
    "sincos": TINY.replace(positions="sincos", pooling="mean", **NO_CLASS),
    "no positions": TINY.replace(positions="none"),
    "map": TINY.replace(pooling="map", **NO_CLASS),
    "map, gated, after a prefix": TINY.replace(pooling="map", mlp="swiglu", registers=2),
    "mean": TINY.replace(pooling="mean", final_norm="pooled"),
    "mean_all": TINY.replace(pooling="mean_all", final_norm="none"),
    "cls+mean": TINY.replace(pooling="cls+mean", final_norm="pooled"),
    "cls+mean, pre_logits": TINY.replace(pooling="cls+mean", pre_logits=True),
    "pre_logits": TINY.replace(pre_logits=True),
    "patch_norms": TINY.replace(patch_norms=True),
    "head_width": TINY.replace(head_width=10, pooling="map"),
    "no biases": TINY.replace(
        qkv_bias="none", patch_bias=False, proj_bias=False, mlp_bias=False, head_bias=False
    ),
    "clip": TINY.replace(pre_norm=True, patch_bias=False, activation="quick_gelu"),
    "no head": TINY.replace(classes=0),
    "no blocks": TINY.replace(depth=0),
}
NATIVE = (3, 40, 56)
OTHER = (3, 16, 88)  # 2 x 11 patches: no size that TINY has
TOKENS = (13, 24)
PARTS = {
    "PatchEmbedding": (PatchEmbedding(TINY), OTHER),
    "PatchEmbedding, normed": (PatchEmbedding(TINY.replace(patch_norms=True)), OTHER),
    "MultiHeadAttention": (MultiHeadAttention(TINY), TOKENS),
    "FeedForward": (FeedForward(TINY), TOKENS),
    "EncoderBlock": (EncoderBlock(CONFIGS["layer_scale"]), TOKENS),
    "Encoder": (Encoder(TINY), TOKENS),
    "AttentionPooling": (AttentionPooling(TINY), TOKENS),
    "ClassificationHead": (ClassificationHead(TINY), (24,)),
    "LayerScale": (LayerScale(24), TOKENS),
    "Linear": (nn.Linear(24, 20), TOKENS),
    "LayerNorm": (nn.LayerNorm(24), (24,)),
    "Identity": (nn.Identity(), OTHER),
    "Dropout": (nn.Dropout(0.5), (24,)),
    "Sequential": (
        nn.Sequential(nn.Linear(24, 20), nn.Dropout(0.5), nn.Linear(20, 24), Encoder(TINY)),
        TOKENS,
    ),
    "Sequential of the post": (
        nn.Sequential(PatchEmbedding(TINY), Encoder(TINY), ClassificationHead(TINY)),
        OTHER,
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small a second thread only waits
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> ViTConfig:
    return request.param


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def run(module: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Run a module in its own way at inference; written-out attention is what a counter sees."""
    with sdpa_kernel(SDPBackend.MATH):
        return module.eval().requires_grad_(False)(torch.randn(1, *size))


@contextmanager
def seen(module: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """Give the shape that each submodule makes, in the order of their first calls."""
    shapes: dict[str, tuple[int, ...]] = {}
    names = {m: name for name, m in module.named_modules() if name}

    def note(module: nn.Module, _given: Any, made: Tensor) -> None:
        shapes.setdefault(names[module], tuple(made.shape))

    handles = [m.register_forward_hook(note) for m in names]
    yield shapes
    for handle in handles:
        handle.remove()


class MadeShapes(TorchDispatchMode):
    """Collect the shape of every tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(t.shape) for t in tree_leaves(made) if isinstance(t, Tensor)}
        return made


def macs(module: nn.Module, size: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        run(module, size)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", presets())
def test_the_rows_of_every_preset_hold_all_its_parameters(name: str) -> None:
    with torch.device("meta"):
        model = ViT(preset(name))

    assert summary(model).parameters == count(model)


@pytest.mark.parametrize("size", [NATIVE, OTHER])
def test_a_row_named_as_a_submodule_has_the_shape_that_it_makes(
    config: ViTConfig, size: tuple[int, ...]
) -> None:
    model = ViT(config)

    with seen(model) as shapes:
        run(model, size)
    rows = {row.name: row.shape for row in summary(model, size).rows if row.name in shapes}

    assert rows == {name: shapes[name] for name in rows}
    assert list(rows) == [name for name in shapes if name in rows]  # in the order of the model
    weighted = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    assert set(weighted) <= set(rows)


def test_every_step_that_takes_memory_makes_its_shape_in_the_real_model(config: ViTConfig) -> None:
    model = ViT(config)

    with MadeShapes() as made:
        run(model, OTHER)

    for row in summary(model, OTHER).rows:
        # q and k are two tensors in one row.
        shape = row.shape[1:] if row.name.endswith("rotated") else row.shape
        assert not row.activation_bytes or shape in made.shapes, row


def test_multiply_accumulates_are_those_that_torch_counts(config: ViTConfig) -> None:
    model = ViT(config)

    assert summary(model, OTHER).macs == macs(model, OTHER)


@pytest.mark.parametrize("rate", [0.3, 0.99])
def test_in_training_the_patches_that_are_dropped_cost_nothing(rate: float) -> None:
    model = ViT(CONFIGS["rope"], DropRates(patches=rate))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.train().requires_grad_(False)(torch.randn(1, *OTHER))

    assert summary(model, OTHER, training=True).macs == counter.get_total_flops() // 2
    assert summary(model, OTHER).macs == macs(model, OTHER)


def test_each_row_has_the_parameters_of_the_module_or_the_tensor_that_it_names(
    config: ViTConfig,
) -> None:
    model = ViT(config)
    modules = {name: count(m) for name, m in model.named_modules()}
    tensors = {name: p.numel() for name, p in model.named_parameters()}

    rows = summary(model).rows

    for row in rows:
        if not row.name.endswith("q_bias, v_bias"):
            assert row.parameters == {**tensors, **modules}.get(row.name, 0)
    assert len({row.name for row in rows}) == len(rows)
    assert sum(row.parameters for row in rows) == count(model)


def test_an_einops_string_turns_the_row_before_it_into_its_row(config: ViTConfig) -> None:
    rows = summary(config, OTHER).rows
    lengths = {"s1": 8, "s2": 8, "qkv": 3, "kv": 2, "k": TINY.heads}

    for before, row in pairwise(rows):
        known = {k: n for k, n in lengths.items() if k in row.einops.replace("(", " ").split()}
        if row.einops:
            made = reduce(torch.zeros(before.shape), row.einops, "max", **known)
            assert tuple(made.shape) == row.shape


def test_an_einops_string_is_one_that_the_model_uses(config: ViTConfig) -> None:
    source = inspect.getsource(vit)

    strings = {row.einops for row in summary(config).rows if row.einops}

    assert len(strings) >= 3 or config.depth == 0
    assert all(f'"{string}"' in source for string in strings)


@pytest.mark.parametrize(("part", "size"), PARTS.values(), ids=list(PARTS))
def test_a_part_is_described_as_it_runs(part: nn.Module, size: tuple[int, ...]) -> None:
    with seen(part) as shapes:
        made = run(part, size)

    described = summary(part, size)

    assert described.model == type(part).__name__
    assert described.rows[-1].shape == tuple(made.shape)
    assert described.parameters == count(part)
    assert described.macs == macs(part, size)
    for row in described.rows:
        assert shapes.get(row.name, row.shape) == row.shape
        assert row.name


def test_the_blog_model_has_its_published_size() -> None:
    blog = summary(preset("blog-b16"), (3, 224, 224), name="blog-b16")
    rows = {row.name: row for row in blog.rows}

    assert blog.parameters == 86_567_656
    assert rows["patches"].shape == (1, 196, 768)
    assert rows["patches"].activation_bytes == 0
    assert rows["patch_embed.proj"].macs == 196 * 768 * 768
    assert rows["blocks.0.attn scores"].shape == (1, 8, 197, 197)
    assert rows["blocks.0.attn scores"].macs == 8 * 197 * 197 * 96
    assert rows["blocks.0.attn scores"].activation_bytes == 0
    assert rows["blocks.11.mlp.fc1"].activation_bytes == 197 * 3072 * 4


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (TINY, NATIVE),
        (ViT(TINY), NATIVE),
        (PatchEmbedding(TINY), (3, 224, 224)),
        (EncoderBlock(TINY), (197, 24)),
        (ClassificationHead(TINY), (24,)),
        (nn.Sequential(PatchEmbedding(TINY), nn.LayerNorm(24)), (3, 224, 224)),
    ],
)
def test_a_size_that_is_not_given_is_the_usual_one(module: nn.Module, size: tuple) -> None:
    assert summary(module) == summary(module, size, name=summary(module).model)


def test_a_config_is_described_without_weights_or_random_numbers() -> None:
    before = torch.random.get_rng_state()

    largest = summary(preset("dinov3-7b16"))  # 27 GB of weights, were they allocated

    assert largest.parameters > 6_700_000_000
    assert torch.equal(torch.random.get_rng_state(), before)


def test_json_has_every_row_and_the_totals() -> None:
    described = summary(TINY, name="tiny")

    values = json.loads(json.dumps(described.to_json()))

    assert values == described.to_json()
    assert list(values) == [
        "model",
        "image_size",
        "rows",
        "parameters",
        "macs",
        "activation_bytes",
    ]
    assert (values["model"], values["image_size"]) == ("tiny", [40, 56])
    assert len(values["rows"]) == len(described.rows)
    assert values["rows"][1] == {
        "name": "patches",
        "axes": "B N 8*8*C",
        "shape": [1, 35, 192],
        "einops": "b c (h s1) (w s2) -> b (h w) (s1 s2 c)",
        "parameters": 0,
        "macs": 0,
        "activation_bytes": 0,
    }
    for column in ("parameters", "macs", "activation_bytes"):
        assert values[column] == sum(row[column] for row in values["rows"])


def test_the_page_writes_equal_blocks_out_once() -> None:
    page = str(summary(TINY.replace(depth=5), name="tiny"))

    assert page.count("blocks.0.mlp.fc1") == 1
    assert "blocks.1 to blocks.4: the same again, 4 times" in page
    assert "blocks.1.mlp" not in page
    assert "blocks.1: the same again " in str(summary(TINY))


def test_the_page_writes_out_a_block_that_differs() -> None:
    model = ViT(TINY)
    model.blocks[1] = EncoderBlock(TINY.replace(mlp_width=100))

    page = str(summary(model))

    assert "blocks.0.mlp.fc1" in page and "blocks.1.mlp.fc1" in page
    assert "M hidden width 72, 100" in page


@pytest.mark.parametrize("name", ["nano", "blog-b16", "dinov3-7b16", "siglip-so400m14"])
def test_the_page_has_a_legend_all_costs_and_short_lines(name: str) -> None:
    described = summary(preset(name), name=name)

    page = str(described)

    for letter, size in (("D width", preset(name).width), ("K heads", preset(name).heads)):
        assert f"{letter} {size:,}" in page
    assert f"{described.parameters:,}" in page
    assert "one matrix" in page and "softmax(q k^T / sqrt(d))" in page
    assert max(map(len, page.splitlines())) <= 110
    assert page.startswith(f"{name}, from image {preset(name).channels} x ")


def test_a_page_says_that_positions_are_resized() -> None:
    assert "positions, resized to 2 x 11" in str(summary(TINY, OTHER))
    assert "resized" not in str(summary(TINY))


@pytest.mark.parametrize(
    ("module", "size", "words"),
    [
        (TINY, (1, 40, 56), ["have 1 channels", "reads 3"]),
        (TINY, (3, 40, 60), ["40 x 60", "patch size 8", "56 and 64"]),
        (TINY, (40, 56), ["(1, 40, 56)", "(B, 3, H, W)"]),
        (TINY, (3, 40, 56, 1), ["(3, 40, 56, 1)", "(C, H, W)"]),
        (TINY, (3, 0, 56), ["(3, 0, 56)"]),
        (MultiHeadAttention(TINY), (9, 50), ["MultiHeadAttention", "(N, 24)", "(9, 50)"]),
        (EncoderBlock(TINY), (3, 8, 24), ["EncoderBlock", "(N, 24)", "(3, 8, 24)"]),
        (AttentionPooling(TINY), (24,), ["AttentionPooling", "(N, 24)", "(24,)"]),
        (ClassificationHead(TINY), (50,), ["ClassificationHead", "(24,)", "(50,)"]),
        (nn.LayerNorm(24), (9, 50), ["LayerNorm", "(24,)", "(9, 50)"]),
        (nn.Sequential(nn.Linear(24, 20), nn.LayerNorm(24)), None, ["LayerNorm", "(20,)"]),
        (nn.Identity(), None, ["Identity", "give a size"]),
        (nn.Conv2d(3, 8, 2), NATIVE, ["Conv2d", "ViT, PatchEmbedding", "Sequential"]),
        (nn.Sequential(nn.ReLU()), (24,), ["ReLU", "ViTConfig", "EncoderBlock"]),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(
    module: nn.Module, size: tuple[int, ...] | None, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        summary(module, size)

    assert [word for word in words if word not in str(error.value)] == []


def test_prefix_tokens_have_positions_only_where_the_table_has_some() -> None:
    def names(config: ViTConfig) -> set[str]:
        return {row.name for row in summary(config).rows}

    assert "prefix + positions" in names(TINY)
    assert "prefix" in names(CONFIGS["deit3"])
    assert "prefix" in names(CONFIGS["no positions"])


def test_a_summary_holds_the_size_that_a_part_was_given() -> None:
    tokens: Summary = summary(FeedForward(TINY), TOKENS)

    assert tokens.image_size == TOKENS
    assert str(tokens).startswith("FeedForward, from tokens 13 x 24\n")
    assert "N tokens 13" in str(tokens)


def test_what_the_head_does_not_read_costs_nothing_to_who_wants_logits_alone(
    config: ViTConfig,
) -> None:
    model = ViT(config).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.logits_alone(torch.randn(1, *OTHER))

    described = summary(model, OTHER, logits_alone=True)
    assert described.macs == counter.get_total_flops() // 2
    assert (described.macs < summary(model, OTHER).macs) == (
        config.pooling == "cls" and config.depth > 0
    )
