"""Which engine `auto` takes: by what it finds out, never by what time a test takes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from conftest import TINY, needs, randomize
from vitrail.data.preprocess import Preprocess
from vitrail.engines import automatic
from vitrail.engines.automatic import SAMPLE, choose, images_worth
from vitrail.engines.build import engine
from vitrail.engines.engine import Engine
from vitrail.errors import ConfigError
from vitrail.model.vit import ViT
from vitrail.weights.bundle import Bundle

PIXELS = torch.randint(0, 256, (SAMPLE, 3, 40, 56), dtype=torch.uint8)


@dataclass
class Fake:
    """Answers that are off by `error` of the largest, and wrong for the first images of a sample.

    It is timed as if an image took it so many `seconds`.
    """

    name: str
    dtype: str
    preprocess: Preprocess
    seconds: float = 1.0
    error: float = 0.0
    wrong: int = 0
    place: str = "cpu"
    reason: str = ""
    seen: int = 0

    @property
    def device(self) -> torch.device:
        return torch.device(self.place)

    def run(self, images: Tensor) -> Tensor:
        logits = torch.eye(9)[torch.arange(len(images)) % 9] * (1 + self.error)
        if images.dtype == torch.uint8:
            bad = max(0, min(len(images), self.wrong - self.seen))
            self.seen += len(images)
            logits[:bad] = logits[:bad].roll(1, dims=1)
        return logits


class Shop:
    """Builds fakes by what they are told to be, and notes which were asked for."""

    def __init__(self, **engines: dict[str, float | str]) -> None:
        self.engines, self.built, self.last = engines, list[str](), False

    def __call__(self, name: str, dtype: str, last: bool = False) -> Engine:
        self.last = last
        dtype = "float32" if dtype == "auto" else dtype
        self.built.append(f"{name} {dtype}")
        if (name, dtype) == ("onnx", "bfloat16"):
            raise ConfigError("onnx has no bfloat16")
        about = self.engines.get(f"{name}_{dtype}", {})
        return Fake(name, dtype, Preprocess(size=(40, 56)), **about)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _openvino_is_here_and_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "is_installed", lambda name: name == "openvino")
    monkeypatch.setattr(automatic, "_seconds", lambda runs, images: runs.seconds)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    model = randomize(ViT(TINY))
    return Bundle(model=model, preprocess=Preprocess(size=(40, 56)), labels=tuple("abcdefghi"))


def chosen(shop: Shop, bundle: Bundle, dtype: str = "float32", **how: object) -> tuple[str, str]:
    about: dict[str, object] = {"images": None, "sample": None, **how}
    runs = choose(shop, bundle, dtype, **about)  # type: ignore[arg-type]
    return f"{runs.name} {runs.dtype}", runs.reason


def test_the_faster_engine_that_answers_alike_is_taken(bundle: Bundle) -> None:
    shop = Shop(openvino_float32={"seconds": 0.4, "error": 1e-5})

    assert chosen(shop, bundle) == ("openvino float32", "2.5 times as fast here as torch")


def test_few_images_are_torch_s_and_nothing_else_is_built(bundle: Bundle) -> None:
    enough, shop = images_worth(bundle), Shop(openvino_float32={"seconds": 0.4})

    few = chosen(shop, bundle, images=enough - 1)
    one = chosen(shop, bundle, images=1)

    assert few[0] == one[0] == "torch float32" and shop.built == ["torch float32"] * 2
    assert few[1].startswith(f"{enough - 1:,} images are answered for before")
    assert one[1].startswith("1 image is answered for before")
    assert chosen(shop, bundle, images=enough)[0] == "openvino float32"


def test_torch_may_take_the_model_only_where_nothing_else_is_built_from_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop()

    def is_last(dtype: str = "float32", **how: object) -> bool:
        chosen(shop, bundle, dtype, **how)
        return shop.last

    assert is_last(images=1) and is_last("auto", images=1)
    assert not is_last()  # openvino is
    monkeypatch.setattr(automatic, "is_installed", lambda name: False)
    assert is_last() and is_last("bfloat16")
    assert not is_last("auto")  # torch in bfloat16 is


def test_the_larger_the_model_the_fewer_images_are_worth_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Bundle(
        model=ViT(TINY.replace(width=384, depth=12)),
        preprocess=bundle.preprocess,
        labels=bundle.labels,
    )

    alone = images_worth(large)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    assert alone < images_worth(bundle) == 50_000
    assert images_worth(large) == pytest.approx(4 * alone, abs=4)


def test_what_is_installed_decides(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(onnx_float32={"seconds": 0.5}, openvino_float32={"seconds": 0.4})

    monkeypatch.setattr(automatic, "is_installed", lambda name: name == "onnx")
    assert chosen(shop, bundle)[0] == "onnx float32"

    monkeypatch.setattr(automatic, "is_installed", lambda name: False)
    assert chosen(shop, bundle) == (
        "torch float32",
        "no other is installed: pip install 'vitrail[openvino]'",
    )


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"seconds": 0.95}, "openvino is no faster here, 1.1 times"),
        ({"seconds": 0.1, "error": 0.01}, "openvino differs from it by 0.01 of the largest logit"),
        ({"seconds": 0.1, "error": float("nan")}, "openvino differs from it by nan"),
    ],
)
def test_what_is_slower_or_answers_otherwise_is_not_taken(
    bundle: Bundle, about: dict[str, float | str], told: str
) -> None:
    name, reason = chosen(Shop(openvino_float32=about), bundle)

    assert name == "torch float32" and reason.startswith(told)


def test_what_cannot_be_built_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "is_installed", lambda name: name == "onnx")

    assert chosen(Shop(), bundle, "bfloat16") == ("torch bfloat16", "onnx has no bfloat16")


def test_on_a_gpu_there_is_torch_alone(bundle: Bundle) -> None:
    shop = Shop(torch_float32={"place": "cuda"}, openvino_float32={"seconds": 0.1})

    assert chosen(shop, bundle) == ("torch float32", "no other engine runs on cuda")
    assert shop.built == ["torch float32"]


def test_bfloat16_is_taken_where_it_answers_a_sample_alike(bundle: Bundle) -> None:
    fast: dict[str, float | str] = {"seconds": 0.4}
    for wrong, taken in ((0, "openvino bfloat16"), (1, "openvino bfloat16"), (2, None)):
        rough: dict[str, float | str] = {"seconds": 0.2, "wrong": wrong, "error": 0.02}
        shop = Shop(openvino_float32=fast, openvino_bfloat16=rough)

        name, reason = chosen(shop, bundle, "auto", sample=PIXELS)

        assert name == (taken or "openvino float32")
        assert f"answers {1 - wrong / SAMPLE:.1%} of 256 images as float32 does" in reason
        assert reason.endswith("2.0 times as fast" if taken else "too few")


def test_bfloat16_is_not_taken_unseen_unasked_or_in_vain(bundle: Bundle) -> None:
    fast: dict[str, float | str] = {"seconds": 0.4}
    shop = Shop(openvino_float32=fast, openvino_bfloat16={"seconds": 0.2})

    for about in ({"sample": None}, {"sample": PIXELS[:200]}):
        name, reason = chosen(shop, bundle, "auto", **about)
        assert name == "openvino float32" and reason.endswith("to try bfloat16 on")
    assert chosen(shop, bundle, "float32", sample=PIXELS)[0] == "openvino float32"
    assert "openvino bfloat16" not in shop.built

    slow = Shop(openvino_float32=fast, openvino_bfloat16={"seconds": 0.4})
    name, reason = chosen(slow, bundle, "auto", sample=PIXELS)
    assert name == "openvino float32" and reason.endswith("bfloat16 is no faster, 1.0 times")


def test_with_onnx_it_is_torch_that_may_have_bfloat16(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic, "is_installed", lambda name: name == "onnx")
    shop = Shop(onnx_float32={"seconds": 0.6}, torch_bfloat16={"seconds": 0.4})

    assert chosen(shop, bundle, "auto", sample=PIXELS)[0] == "torch bfloat16"


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_auto_answers_as_torch_does_whatever_it_takes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    needs("openvino")
    times = {"torch": 1.0, "openvino": seconds}
    monkeypatch.setattr(automatic, "_seconds", lambda runs, images: times[runs.name])
    images = torch.randn(3, 3, 40, 56)

    runs = engine(bundle, device="cpu")

    assert runs.name == min(times, key=lambda name: times[name]) and runs.reason
    wanted = engine(bundle, "torch", device="cpu").run(images)
    torch.testing.assert_close(runs.run(images), wanted, atol=1e-4, rtol=0)
