"""OpenVINO and ONNX Runtime answer as torch does, whatever plain ViT it is."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import TINY, needs, randomize
from families import FAMILIES, build
from vitrail.data.preprocess import Preprocess
from vitrail.engines import onnx_engine, openvino_engine
from vitrail.engines.build import engine
from vitrail.engines.compiled import CompiledEngine
from vitrail.engines.engine import Engine
from vitrail.errors import ConfigError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import MultiHeadAttention, ViT
from vitrail.weights.bundle import Bundle

# What two orders of the same sums round differently; bfloat16 anywhere would show as 1e-2.
FLOAT32 = {"atol": 1e-4, "rtol": 0}

# An export takes two seconds: those that have between them all that any family is made of.
PARTS = (
    "vit-ti16", "simple-s16", "deit-ti16-distilled", "deit3-s16", "dinov2-g14-reg4", "dinov3-s16",
    "clip-b32", "siglip-b16", "blog-b16",
)  # fmt: skip


@pytest.fixture
def runtime() -> ModuleType:
    needs("openvino")
    return openvino_engine.openvino()


def bundle_of(model: ViT) -> Bundle:
    config = model.config
    preprocess = Preprocess(size=config.image_size, mean=(0.1, 0.4, 0.5), std=(0.2, 0.6, 0.7))
    return Bundle(model=model, preprocess=preprocess, labels=tuple("abcdefghi"[: config.classes]))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_of(randomize(ViT(TINY)))


def built(bundle: Bundle, name: str, dtype: str = "float32") -> Engine:
    needs(name)
    return engine(bundle, name, dtype)


def pixels(count: int, config: ViTConfig) -> Tensor:
    return torch.randint(0, 256, (count, config.channels, *config.image_size), dtype=torch.uint8)


@torch.no_grad()
def wanted(bundle: Bundle, images: Tensor) -> Tensor:
    return bundle.model.eval()(images)


def same_as_torch(config: ViTConfig, name: str) -> None:
    bundle = bundle_of(build(config))
    runs = built(bundle, name)
    for count in (1, 3, 7):
        images = pixels(count, config)
        normalised = bundle.preprocess.normalize(images)
        torch.testing.assert_close(runs.run(images), wanted(bundle, normalised), **FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("config", FAMILIES)
def test_openvino_answers_as_torch_does_for_every_family(config: ViTConfig) -> None:
    same_as_torch(config.replace(depth=2), "openvino")


@pytest.mark.slow
@pytest.mark.parametrize("config", [family for family in FAMILIES if family.id in PARTS])
def test_onnx_answers_as_torch_does_for_every_part_of_a_family(config: ViTConfig) -> None:
    same_as_torch(config.replace(depth=1), "onnx")


def test_a_model_without_classes_gives_its_features() -> None:
    same_as_torch(TINY.replace(classes=0, pooling="cls+mean"), "openvino")


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_a_compiled_engine_is_one_for_pixels_and_for_normalised_images(
    bundle: Bundle, name: str
) -> None:
    runs, images = built(bundle, name), pixels(2, TINY)
    normalised = bundle.preprocess.normalize(images)

    assert (runs.name, runs.dtype, runs.device.type, runs.reason) == (name, "float32", "cpu", "")
    found = runs.run(images)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted(bundle, normalised), **FLOAT32)
    assert torch.equal(runs.run(normalised), found)
    assert torch.equal(runs.run(normalised.double()), found)
    assert runs.run(images[:0]).shape == (0, 9)


@pytest.mark.parametrize(
    "rule", ["vit-ti16", "deit-ti16", "dino-s8", "dinov3-s16", "simple-s16", "clip-b32"]
)
def test_another_image_size_has_the_positions_that_torch_gives_it(rule: str) -> None:
    (config,) = (p.values[0] for p in FAMILIES if p.id == rule)
    bundle = bundle_of(build(config.replace(depth=1)))  # type: ignore[union-attr]
    images = torch.randn(2, 3, 28, 16)

    found = built(bundle, "openvino").run(images)

    torch.testing.assert_close(found, wanted(bundle, images), **FLOAT32)


@pytest.mark.parametrize("name", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_what_becomes_of_the_model_later_is_not_the_engine_s(name: str) -> None:
    bundle = bundle_of(randomize(ViT(TINY)))
    runs, images = built(bundle, name), pixels(2, TINY)
    before = runs.run(images)

    with torch.no_grad():
        for weight in bundle.model.parameters():
            weight.add_(1)

    assert torch.equal(runs.run(images), before)


def test_bfloat16_is_bfloat16_and_float32_is_not(bundle: Bundle) -> None:
    exact, images = built(bundle, "openvino"), pixels(4, TINY)
    if "bfloat16" not in openvino_engine.openvino_dtypes():
        pytest.skip("this processor has no bfloat16")

    rough = built(bundle, "openvino", "bfloat16")

    assert rough.dtype == "bfloat16"
    error = (rough.run(images) - exact.run(images)).abs().max()
    assert 1e-4 < error < 0.1  # 8 bits of a number of the order of 1


def test_a_processor_without_bfloat16_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "openvino_dtypes", lambda: ("float32",))

    with pytest.raises(ConfigError, match='no arithmetic in bfloat16: take dtype "float32"'):
        built(bundle, "openvino", "bfloat16")
    with pytest.raises(ConfigError, match="no float16 on a CPU, but float32"):
        built(bundle, "openvino", "float16")


def test_onnx_says_which_dtype_there_is(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match='"onnx" has no bfloat16 on a CPU: take dtype "float32"'):
        built(bundle, "onnx", "bfloat16")


@pytest.mark.parametrize(
    ("name", "package", "cure"),
    [
        ("openvino", "openvino", "pip install 'vitrail[openvino]'"),
        ("onnx", "onnxscript", "pip install 'vitrail[export]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_cure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, package: str, cure: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ConfigError) as told:
        engine(bundle, name)

    assert f'engine "{name}" needs ' in str(told.value)
    assert package in str(told.value) and cure in str(told.value)


def test_openvino_is_told_precision_and_threads(
    bundle: Bundle, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, compile_model = [], runtime.Core.compile_model

    def spy(core: Any, graph: Any, device: str, settings: dict[str, Any]) -> Any:
        told.append((device, settings))
        return compile_model(core, graph, device, settings)

    monkeypatch.setattr(runtime.Core, "compile_model", spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine(bundle, "openvino")

    ((device, settings),) = told
    assert device == "CPU"
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert settings["INFERENCE_NUM_THREADS"] == 2


def test_onnx_runtime_is_told_the_threads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("onnx")
    import onnxruntime

    told, session = [], onnxruntime.InferenceSession

    def spy(source: bytes, options: Any, **how: Any) -> Any:
        told.append((options.intra_op_num_threads, how["providers"]))
        return session(source, options, **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine(bundle, "onnx")

    assert told == [(2, ["CPUExecutionProvider"])]


@pytest.mark.slow
def test_a_model_too_large_for_one_message_goes_through_a_folder_that_is_gone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual, images = built(bundle, "onnx"), pixels(2, TINY)
    monkeypatch.setattr(onnx_engine, "_LARGEST", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    runs = built(bundle, "onnx")

    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(runs.run(images), usual.run(images), **FLOAT32)


@pytest.mark.slow
def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    needs("openvino")
    code = (
        "import vitrail\n"
        "model, labels = vitrail.create('nano'), tuple('0123456789')\n"
        "grey = vitrail.Preprocess(size=(8, 8), mean=(0.5,), std=(0.5,))\n"
        "bundle = vitrail.Bundle(model=model, preprocess=grey, labels=labels)\n"
        "vitrail.engine(bundle, 'openvino')\n"
        "from openvino.tools.ovc.telemetry_utils import tm\n"
        "print(tm.__name__)"
    )
    # In CI it would report nothing anyway.
    environment = {key: value for key, value in os.environ.items() if key != "CI"}

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "openvino.tools.ovc.telemetry_stub\n"
    assert list(tmp_path.iterdir()) == []


def test_a_process_whose_openvino_engine_went_on_another_thread_hears_signals() -> None:
    needs("openvino")
    code = (
        "import os, signal, threading, vitrail\n"
        "model, labels = vitrail.create('nano'), tuple('0123456789')\n"
        "grey = vitrail.Preprocess(size=(8, 8), mean=(0.5,), std=(0.5,))\n"
        "bundle = vitrail.Bundle(model=model, preprocess=grey, labels=labels)\n"
        "engines = [vitrail.engine(bundle, 'openvino')]\n"
        "thread = threading.Thread(target=engines.clear)\n"
        "thread.start(), thread.join()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "heard\n")


class Masked(nn.Module):
    """Attention to what a mask allows; the last token may look nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = randomize(MultiHeadAttention(TINY))
        self.register_buffer(
            "mask", torch.ones(5, 5).tril().bool() & (torch.arange(5) < 4)[:, None]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, self.mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_a_mask_and_written_out_is_exported_as_it_is(dtype: torch.dtype) -> None:
    module = Masked().to(dtype).eval()
    x = torch.randn(3, 5, TINY.width, dtype=dtype)
    batch = torch.export.Dim("batch")

    with torch.no_grad():
        program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: batch},))
        found = program.module()(x)

        assert torch.equal(found, module(x))
    assert found.isfinite().all()


def test_a_mask_is_openvino_s_too(runtime: Any) -> None:
    module, x = Masked().eval(), torch.randn(3, 5, TINY.width)

    graph = openvino_engine.graph_of(module, (5, TINY.width))
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino_engine.core().compile_model(graph, "CPU", exact)([x])[0]

    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), module(x), **FLOAT32)


def by_torch(model: ViT) -> Callable[[np.ndarray], np.ndarray]:
    """What a runtime would be, were torch one."""

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return run


def test_an_image_size_is_compiled_once_and_the_last_four_are_kept(bundle: Bundle) -> None:
    made: list[tuple[int, int]] = []

    def compile(model: ViT) -> Callable[[np.ndarray], np.ndarray]:
        made.append(model.config.image_size)
        return by_torch(model)

    runs = CompiledEngine("fake", "float32", bundle.model, bundle.preprocess, compile)
    for size in [(40, 56), (8, 8), (40, 56), (16, 8), (24, 8), (8, 8), (32, 8), (8, 8), (40, 56)]:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(runs.run(images), wanted(bundle, images), **FLOAT32)

    assert made == [(40, 56), (8, 8), (16, 8), (24, 8), (32, 8), (40, 56)]


def test_images_that_do_not_fit_are_told_as_the_model_tells_it(bundle: Bundle) -> None:
    runs = CompiledEngine("fake", "float32", bundle.model, bundle.preprocess, by_torch)

    with pytest.raises(ConfigError, match="patch size 8 does not divide 41"):
        runs.run(torch.randn(1, 3, 41, 56))
    with pytest.raises(ConfigError, match="images have 1 channels, this model reads 3"):
        runs.run(torch.randn(1, 1, 40, 56))


def test_a_runtime_that_fails_is_named_with_what_it_said(bundle: Bundle) -> None:
    def compile(model: ViT) -> Callable[[np.ndarray], np.ndarray]:
        raise RuntimeError("no kernel")

    with pytest.raises(ConfigError) as told:
        CompiledEngine("fake", "float32", bundle.model, bundle.preprocess, compile)

    assert str(told.value) == (
        'engine "fake" cannot run this model at 40 x 56: RuntimeError: no kernel; '
        'engine "torch" can'
    )
