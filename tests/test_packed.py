"""The packed form of a model: the same answers from other kernels, and the model left as it was."""

from functools import partial

import pytest
import torch

from conftest import randomize
from families import FAMILIES, VIT, build
from vitrail.data.preprocess import Preprocess
from vitrail.engines import packed as packing
from vitrail.engines.packed import packed
from vitrail.engines.torch_engine import TorchEngine
from vitrail.model.config import ViTConfig
from vitrail.model.merging import merged_tokens
from vitrail.model.vit import ViT

HOW = Preprocess(size=(12, 20), mean=(0.1, 0.4, 0.5), std=(0.2, 0.6, 0.7))
PIXELS = torch.randint(0, 256, (3, 3, 12, 20), dtype=torch.uint8)
# bfloat16 has 8 bits; some thirty roundings one after the other. The answers are about 1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}


def twin_of(model: ViT, dtype: torch.dtype = torch.float32) -> ViT:
    twin = packed(model, HOW, dtype)
    if twin is None:
        pytest.skip("this torch has no packed matrices, or this processor no bfloat16")
    return twin


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", FAMILIES)
def test_every_family_answers_as_its_model_does(config: ViTConfig, dtype: torch.dtype) -> None:
    model = build(config)
    images = HOW.normalize(PIXELS)
    wanted = model(images)

    twin = twin_of(model, dtype)

    for given in (images, PIXELS):
        found = twin(given)
        assert found.dtype == dtype
        scale = float(wanted.abs().max().clamp(min=1))
        torch.testing.assert_close(found.float(), wanted, atol=TOLERANCE[dtype] * scale, rtol=0)
    assert torch.equal(model(images), wanted)  # nothing of it has changed


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", FAMILIES)
def test_a_twin_that_takes_the_matrices_answers_alike(
    config: ViTConfig, dtype: torch.dtype
) -> None:
    model = build(config)
    kept = twin_of(model, dtype)

    taken = packed(model, HOW, dtype, takes=True)

    assert taken is not None and torch.equal(taken(PIXELS), kept(PIXELS))
    held = {name for name, weight in model.named_parameters() if weight.device.type == "meta"}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    inside = {f"blocks.{i}.{x}.weight" for i in range(config.depth) for x in layers}
    assert inside <= held <= inside | {"head.weight", "head_dist.weight"}


def test_an_engine_takes_the_matrices_only_where_it_may() -> None:
    model = build(VIT)
    twin_of(model)

    kept = TorchEngine(model, HOW).run(PIXELS)
    assert all(weight.device.type == "cpu" for weight in model.parameters())

    assert torch.equal(TorchEngine(model, HOW, keeps=False).run(PIXELS), kept)
    assert any(weight.device.type == "meta" for weight in model.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_every_activation_is_its_own(activation: str) -> None:
    model = build(VIT.replace(activation=activation, layer_scale=0.5))
    images = HOW.normalize(PIXELS)

    torch.testing.assert_close(twin_of(model)(images), model(images), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_masks_layers_and_merged_tokens_go_through_it_too() -> None:
    model = build(VIT)
    twin, images = twin_of(model), HOW.normalize(PIXELS)
    x, _, _ = model.embed(images)
    mask = torch.rand(x.shape[1], x.shape[1]) < 0.7

    near = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    near(twin.blocks[1](x, mask), model.blocks[1](x, mask))
    for one, other in zip(twin.tokens(images, [0, 2]), model.tokens(images, [0, 2]), strict=True):
        near(one.patches, other.patches)
    merged = (merged_tokens(each, images, 3).patches for each in (twin, model))
    near(*merged)


def test_a_twin_that_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(VIT)
    twin_of(model)  # there is one here

    def wrong(self: packing.PackedFeedForward, x: torch.Tensor) -> torch.Tensor:
        return self.fc1(x)  # forgets the GELU

    with monkeypatch.context() as patch:
        patch.setattr(packing.PackedFeedForward, "hidden", wrong)
        engine = TorchEngine(model, HOW)

    assert not engine.is_packed and engine.model is model
    assert TorchEngine(model, HOW).is_packed


@pytest.mark.parametrize("why", ["large", "no operators"])
def test_where_it_cannot_be_the_model_itself_answers(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    model = randomize(ViT(VIT))
    if why == "large":
        monkeypatch.setattr(packing, "_MOST_BYTES", 10)
    else:
        monkeypatch.setattr(packing, "_operators", lambda: object())

    engine = TorchEngine(model, HOW)

    assert not engine.is_packed
    with torch.inference_mode():
        assert torch.equal(engine.run(PIXELS), model.logits_alone(HOW.normalize(PIXELS)))
