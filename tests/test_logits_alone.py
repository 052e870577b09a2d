"""Logits without the tokens that no head reads: the same answers and gradients, for less work."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import TINY
from vitrail.data.preprocess import Preprocess
from vitrail.engines.compiled import logits_alone
from vitrail.engines.torch_engine import TorchEngine
from vitrail.model.config import DropRates, ViTConfig
from vitrail.model.vit import EncoderBlock, ViT

NO_CLASS: dict[str, Any] = {"class_token": False, "prefix_positions": 0}
CONFIGS = {
    "class token": TINY,
    "registers": TINY.replace(registers=4, layer_scale=0.5, qk_norm=True, mlp="swiglu"),
    "distilled": TINY.replace(distillation_token=True, prefix_positions=2),
    "rope": TINY.replace(positions="rope", prefix_positions=0, registers=4, qkv_bias="no_key"),
    "cls+mean": TINY.replace(pooling="cls+mean"),
    "mean": TINY.replace(pooling="mean", final_norm="pooled"),
    "mean_all": TINY.replace(pooling="mean_all"),
    "map": TINY.replace(pooling="map", **NO_CLASS),
    "no head": TINY.replace(classes=0),
    "one block": TINY.replace(depth=1),
    "no blocks": TINY.replace(depth=0),
}
SHORT = ("class token", "registers", "distilled", "rope", "no head", "one block")


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> ViTConfig:
    return request.param


def build(config: ViTConfig) -> ViT:
    """Build a model in float64 whose parameters are all far from zero: no branch hides."""
    torch.manual_seed(0)
    model = ViT(config).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def photos(config: ViTConfig) -> Tensor:
    return torch.randn(3, 3, *config.image_size, dtype=torch.float64)


def leaving(model: ViT, images: Tensor) -> list[int]:
    """Give how many tokens the last matrix of the model's blocks is given, without a hook."""
    seen: list[int] = []
    whole = model.blocks[-1].mlp.forward
    model.blocks[-1].mlp.forward = lambda x: seen.append(x.shape[1]) or whole(x)
    model.logits_alone(images)
    return seen


def test_the_logits_are_those_of_all_tokens(config: ViTConfig) -> None:
    model = build(config).eval()
    images = photos(config)

    assert torch.equal(model(images), model.logits(model.tokens(images)))
    torch.testing.assert_close(model.logits_alone(images), model(images), rtol=1e-12, atol=1e-12)


def test_training_gives_the_gradients_of_all_tokens(config: ViTConfig) -> None:
    model = build(config).train()
    images = photos(config)

    def gradients(logits: Tensor) -> tuple[Tensor, ...]:
        wanted = list(model.parameters())
        return torch.autograd.grad(logits.square().sum(), wanted, materialize_grads=True)

    short, whole = model(images), model.logits(model.tokens(images))

    torch.testing.assert_close(short, whole, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(short), gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "no blocks"])
def test_the_last_block_makes_no_tokens_that_are_not_read(name: str) -> None:
    config = CONFIGS[name]
    patches = config.grid[0] * config.grid[1]
    wanted = config.prefix if name in SHORT else config.prefix + patches

    assert leaving(build(config).eval(), photos(config)) == [wanted]


@pytest.mark.parametrize("where", ["norm", "blocks.1", "blocks.1.attn", "blocks.1.mlp.fc2"])
def test_a_hook_in_the_last_block_is_given_every_token(where: str) -> None:
    model = build(TINY.replace(depth=2)).train()
    images, shapes = photos(TINY), []
    handle = model.get_submodule(where).register_forward_hook(
        lambda _, __, given: shapes.append(given.shape[1])
    )
    watched = model(images)
    handle.remove()

    assert shapes == [TINY.prefix + TINY.grid[0] * TINY.grid[1]]
    torch.testing.assert_close(watched, model(images), rtol=1e-12, atol=1e-12)


def test_a_block_gives_its_first_tokens_as_it_gives_all() -> None:
    block = EncoderBlock(TINY).double().eval()
    x = torch.randn(2, 7, TINY.width, dtype=torch.float64)
    mask = torch.rand(2, 1, 3, 7) > 0.3
    whole = torch.cat([mask, torch.ones(2, 1, 4, 7, dtype=torch.bool)], dim=2)

    torch.testing.assert_close(block(x, None, None, 3), block(x)[:, :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        block(x, mask, None, 3), block(x, whole)[:, :3], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("rates", [DropRates(residual=0.3), DropRates(attention=0.3, mlp=0.3)])
def test_what_is_dropped_in_training_can_be_repeated(rates: DropRates) -> None:
    model = ViT(TINY, rates).train()
    images = torch.randn(2, 3, *TINY.image_size)
    torch.manual_seed(1)
    once = model(images)
    torch.manual_seed(1)

    assert torch.equal(once, model(images))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_s_engine_answers_so_where_it_packs(dtype: str) -> None:
    config = TINY.replace(layer_scale=0.5)
    model = build(config).float().eval()
    preprocess = Preprocess(size=config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = photos(config).float()
    wanted = model(images)
    close = 1e-4 if dtype == "float32" else 5e-2

    engine = TorchEngine(model, preprocess, dtype)

    assert engine.is_packed
    assert (engine.run(images) - wanted).abs().max() <= close * wanted.abs().max()
    assert engine.tokens(images).patches.shape[1] == config.grid[0] * config.grid[1]
    # The model itself, bit for bit.
    assert torch.equal(TorchEngine(model, preprocess, packs=False).run(images), wanted)


def test_it_compiles_as_one_graph() -> None:
    model = build(TINY).train()
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    images = photos(TINY)

    torch.testing.assert_close(compiled(images), model(images), rtol=1e-12, atol=1e-12)
    assert len(graphs) == 1


def test_a_runtime_is_given_no_more_than_is_read() -> None:
    model, images = build(TINY).eval(), photos(TINY)
    whole = model(images)
    twin = logits_alone(model)

    torch.testing.assert_close(twin(images), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(twin(images), model.logits_alone(images))
    assert torch.equal(model(images), whole)  # which is as it was
    graph = torch.export.export(twin, (images,))
    made = [node.meta.get("val") for node in graph.graph.nodes]
    shapes = [tuple(value.shape) for value in made if isinstance(value, Tensor)]
    assert (3, TINY.prefix, TINY.mlp_width) in shapes


def test_a_hook_of_torch_s_own_makes_it_no_slower() -> None:
    model, images = build(TINY).eval(), photos(TINY)

    def hook(module: nn.Module, read: Any, given: Tensor) -> None:
        pass

    hook.__module__ = "torch.distributed.fsdp"
    model.blocks[-1].register_forward_hook(hook)

    assert leaving(model, images) == [TINY.prefix]
