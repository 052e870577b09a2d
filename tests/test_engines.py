from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import TINY, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import engine
from vitrail.engines.torch_engine import TorchEngine
from vitrail.errors import ConfigError
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

PIXELS = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    preprocess = Preprocess(size=(40, 56), mean=(0.1, 0.4, 0.5), std=(0.2, 0.6, 0.7))
    return Bundle(model=randomize(ViT(TINY)), preprocess=preprocess, labels=tuple("abcdefghi"))


def test_an_engine_gives_the_model_s_logits_for_pixels_and_for_normalised_images(
    bundle: Bundle,
) -> None:
    runs = engine(bundle, "torch", device="cpu")
    plain = TorchEngine(bundle.model, bundle.preprocess, packs=False)
    normalised = bundle.preprocess.normalize(PIXELS)

    with torch.no_grad():
        wanted = bundle.model(normalised)

    assert (runs.name, runs.dtype, runs.device.type) == ("torch", "float32", "cpu")
    for images in (PIXELS, normalised):
        assert torch.equal(plain.run(images), wanted)
        torch.testing.assert_close(runs.run(images), wanted)


def test_logits_are_float32_whatever_the_arithmetic(bundle: Bundle) -> None:
    exact, rough = (
        engine(bundle, "torch", dtype, device="cpu").run(PIXELS)
        for dtype in ("float32", "bfloat16")
    )

    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    # bfloat16 keeps 8 bits of a number; logits here are of the order of 1.
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)


def test_an_engine_does_not_train(bundle: Bundle) -> None:
    bundle.model.train()

    found = engine(bundle, "torch", device="cpu").run(PIXELS)

    assert not bundle.model.training and not found.requires_grad


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"name": "tensorrt"}, 'no engine "tensorrt", but torch, onnx'),
        ({"name": "troch"}, 'Did you mean "torch"'),
        ({"dtype": "float8"}, 'dtype is "float8"'),
        ({"device": "gpu"}, 'no device "gpu"'),
    ],
)
def test_an_engine_that_is_not_here_is_refused(
    bundle: Bundle, how: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        engine(bundle, **how)


def test_a_digest_tells_models_apart_by_all_that_decides_an_answer(bundle: Bundle) -> None:
    other = ViT(TINY)
    other.load_state_dict(bundle.model.state_dict())
    same = replace(bundle, model=other, origin={"path": "elsewhere"})
    assert same.digest() == bundle.digest()

    other.head.bias.data[3] += 1e-6  # type: ignore[union-attr]

    others = [
        same,
        replace(bundle, labels=tuple("bacdefghi")),
        replace(bundle, preprocess=replace(bundle.preprocess, crop=0.9)),
        replace(bundle, model=_like(bundle.model, activation="gelu_tanh")),
    ]
    assert len({bundle.digest(), *(found.digest() for found in others)}) == 5


def _like(model: ViT, **changes: str) -> ViT:
    other = ViT(model.config.replace(**changes))
    other.load_state_dict(model.state_dict())
    return other
