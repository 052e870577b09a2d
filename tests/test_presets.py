import json
import subprocess
import sys

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.model.presets import preset, presets
from vitrail.model.vit import ViT

# width, depth, heads, patch, image side, MLP width, and parameters without the head: those of the
# released checkpoints, and of the papers where none was released.
SIZES = {
    "vit-ti16": (192, 12, 3, 16, 224, 768, 5_524_416),
    "vit-s16": (384, 12, 6, 16, 224, 1536, 21_665_664),
    "vit-s32": (384, 12, 6, 32, 224, 1536, 22_493_952),
    "vit-b8": (768, 12, 12, 8, 224, 3072, 85_807_872),
    "vit-b16": (768, 12, 12, 16, 224, 3072, 85_798_656),
    "vit-b32": (768, 12, 12, 32, 224, 3072, 87_455_232),
    "vit-l14": (1024, 24, 16, 14, 224, 4096, 303_178_752),
    "vit-l16": (1024, 24, 16, 16, 224, 4096, 303_301_632),
    "vit-l32": (1024, 24, 16, 32, 224, 4096, 305_510_400),
    "vit-h14": (1280, 32, 16, 14, 224, 5120, 630_764_800),
    "vit-g14": (1408, 40, 16, 14, 224, 6144, 1_011_202_432),
    "simple-s16": (384, 12, 6, 16, 224, 1536, 21_589_632),  # S/16 less 198 rows of 384
    "deit-ti16": (192, 12, 3, 16, 224, 768, 5_524_416),
    "deit-s16": (384, 12, 6, 16, 224, 1536, 21_665_664),
    "deit-b16": (768, 12, 12, 16, 224, 3072, 85_798_656),
    "deit-ti16-distilled": (192, 12, 3, 16, 224, 768, 5_524_800),
    "deit-s16-distilled": (384, 12, 6, 16, 224, 1536, 21_666_432),
    "deit-b16-distilled": (768, 12, 12, 16, 224, 3072, 85_800_192),
    "deit3-s16": (384, 12, 6, 16, 224, 1536, 21_674_496),
    "deit3-m16": (512, 12, 8, 16, 224, 2048, 38_336_512),
    "deit3-b16": (768, 12, 12, 16, 224, 3072, 85_816_320),
    "deit3-l16": (1024, 24, 16, 16, 224, 4096, 303_349_760),
    "deit3-h14": (1280, 32, 16, 14, 224, 5120, 630_845_440),
    "mae-b16": (768, 12, 12, 16, 224, 3072, 85_798_656),
    "mae-l16": (1024, 24, 16, 16, 224, 4096, 303_301_632),
    "mae-h14": (1280, 32, 16, 14, 224, 5120, 630_764_800),
    "dino-s8": (384, 12, 6, 8, 224, 1536, 21_670_272),
    "dino-s16": (384, 12, 6, 16, 224, 1536, 21_665_664),
    "dino-b8": (768, 12, 12, 8, 224, 3072, 85_807_872),
    "dino-b16": (768, 12, 12, 16, 224, 3072, 85_798_656),
    "dinov2-s14": (384, 12, 6, 14, 518, 1536, 22_056_192),
    "dinov2-b14": (768, 12, 12, 14, 518, 3072, 86_579_712),
    "dinov2-l14": (1024, 24, 16, 14, 518, 4096, 304_367_616),
    "dinov2-g14": (1536, 40, 24, 14, 518, 4096, 1_136_479_232),
    "dinov2-s14-reg4": (384, 12, 6, 14, 518, 1536, 22_057_344),
    "dinov2-b14-reg4": (768, 12, 12, 14, 518, 3072, 86_582_016),
    "dinov2-l14-reg4": (1024, 24, 16, 14, 518, 4096, 304_370_688),
    "dinov2-g14-reg4": (1536, 40, 24, 14, 518, 4096, 1_136_483_840),
    "dinov3-s16": (384, 12, 6, 16, 224, 1536, 21_586_944),
    "dinov3-splus16": (384, 12, 6, 16, 224, 1536, 28_683_264),
    "dinov3-b16": (768, 12, 12, 16, 224, 3072, 85_641_216),
    "dinov3-l16": (1024, 24, 16, 16, 224, 4096, 303_079_424),
    "dinov3-hplus16": (1280, 32, 20, 16, 224, 5120, 840_509_440),
    "dinov3-7b16": (4096, 40, 32, 16, 224, 8192, 6_716_030_976),
    "clip-b32": (768, 12, 12, 32, 224, 3072, 87_456_000),
    "clip-b16": (768, 12, 12, 16, 224, 3072, 85_799_424),
    "clip-l14": (1024, 24, 16, 14, 224, 4096, 303_179_776),
    "clip-h14": (1280, 32, 16, 14, 224, 5120, 630_766_080),
    "clip-g14": (1408, 40, 16, 14, 224, 6144, 1_011_203_840),
    "clip-bigg14": (1664, 48, 16, 14, 224, 8192, 1_842_777_344),
    "siglip-b16": (768, 12, 12, 16, 224, 3072, 92_884_224),
    "siglip-l16": (1024, 24, 16, 16, 256, 4096, 315_956_224),
    "siglip-so400m14": (1152, 27, 16, 14, 224, 4304, 427_680_704),
    "blog-b16": (768, 12, 8, 16, 224, 3072, 85_798_656),
    "nano": (64, 4, 4, 2, 8, 256, 201_536),
}

BICUBIC = PositionResize(antialias=False)
DINO = PositionResize(antialias=False, offset=0.1)
DINO3 = {"classes": 0, "registers": 4, "positions": "rope", "norm_eps": 1e-5, "qkv_bias": "none"}
CLIP = {"pre_norm": True, "patch_bias": False, "head_bias": False, "norm_eps": 1e-5}
SWIGLU = {"mlp": "swiglu", "activation": "silu"}
# Wherein each family differs from ViT-B/16, besides its sizes.
SWITCHES = {
    "vit-": {},
    "simple-": {"class_token": False, "positions": "sincos", "pooling": "mean"},
    "deit-": {"position_resize": BICUBIC},
    "deit3-": {"position_resize": BICUBIC, "prefix_positions": 0, "layer_scale": 1e-6},
    "mae-": {"classes": 0, "position_resize": BICUBIC},
    "dino-": {"classes": 0, "position_resize": DINO},
    "dinov2-": {"classes": 0, "layer_scale": 1e-5},
    "dinov3-": {**DINO3, "layer_scale": 1e-5},
    "clip-": CLIP,
    "siglip-": {
        "classes": 0,
        "class_token": False,
        "prefix_positions": 0,
        "pooling": "map",
        "activation": "gelu_tanh",
    },
    "blog-": {"pooling": "mean_all", "final_norm": "pooled", "norm_eps": 1e-5},
    "nano": {"channels": 1, "classes": 10},
}
OWN_SWITCHES = {
    "deit-ti16-distilled": {"distillation_token": True, "prefix_positions": 2},
    "deit-s16-distilled": {"distillation_token": True, "prefix_positions": 2},
    "deit-b16-distilled": {"distillation_token": True, "prefix_positions": 2},
    "dinov2-s14": {"position_resize": DINO},
    "dinov2-b14": {"position_resize": DINO},
    "dinov2-l14": {"position_resize": DINO},
    "dinov2-g14": {"position_resize": DINO, **SWIGLU},
    "dinov2-s14-reg4": {"registers": 4, "prefix_positions": 0},
    "dinov2-b14-reg4": {"registers": 4, "prefix_positions": 0},
    "dinov2-l14-reg4": {"registers": 4, "prefix_positions": 0},
    "dinov2-g14-reg4": {"registers": 4, "prefix_positions": 0, **SWIGLU},
    "dinov3-splus16": SWIGLU,
    "dinov3-hplus16": SWIGLU,
    "dinov3-7b16": SWIGLU,
    # `classes` is the width of the space that images and texts share.
    "clip-b32": {"activation": "quick_gelu", "classes": 512},
    "clip-b16": {"activation": "quick_gelu", "classes": 512},
    "clip-l14": {"activation": "quick_gelu", "classes": 768},
    "clip-h14": {"classes": 1024},
    "clip-g14": {"classes": 1024},
    "clip-bigg14": {"classes": 1280},
}


def parameters(config: ViTConfig) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in ViT(config).parameters())


def test_the_presets_are_these() -> None:
    assert presets() == tuple(SIZES)
    assert vitrail.presets() == presets()


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_has_its_published_sizes_and_parameters(name: str) -> None:
    *sizes, backbone = SIZES[name]

    config = preset(name)

    side = config.image_size[0]
    assert config.image_size == (side, side)
    attributes = ("width", "depth", "heads", "patch_size")
    assert [getattr(config, name) for name in attributes] == sizes[:4]
    assert [side, config.mlp_width] == sizes[4:]
    assert parameters(config.replace(classes=0)) == backbone


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_has_the_switches_of_its_family(name: str) -> None:
    config = preset(name)
    (family,) = [family for family in SWITCHES if name.startswith(family)]
    switches = {**SWITCHES[family], **OWN_SWITCHES.get(name, {})}
    sizes = ("width", "depth", "heads", "patch_size", "image_size", "mlp_width", "head_width")

    expected = ViTConfig(**{size: getattr(config, size) for size in sizes}, **switches)

    # Without a position table nothing reads how many of its rows are the prefix's.
    unread = {} if config.positions == "learned" else {"prefix_positions": 0}
    assert config.replace(**unread) == expected.replace(**unread)


def test_the_post_s_own_model_has_the_parameters_that_torchsummary_could_not_count() -> None:
    config = preset("blog-b16")

    bare = config.width * (1 + 197)  # class token and positions, which torchsummary skips

    assert parameters(config) == 86_567_656
    assert parameters(config) - bare == 86_415_592


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("vit-b-16", "vit-b16"), ("dinov2-s14-reg", "dinov2-s14-reg4"), ("NANO", "nano")],
)
def test_an_unknown_preset_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as raised:
        preset(wrong)

    assert f'"{wrong}"' in str(raised.value)
    assert f'Did you mean "{right}"?' in str(raised.value)
    assert "vitrail presets" in str(raised.value)


@pytest.mark.parametrize("name", SIZES)
def test_a_config_survives_json(name: str) -> None:
    text = json.dumps(preset(name).to_json())

    assert ViTConfig.from_json(json.loads(text)) == preset(name)


def test_configs_and_presets_need_no_torch() -> None:
    code = (
        "import sys, vitrail, vitrail.errors, vitrail.model.config; vitrail.presets();"
        "vitrail.ViTConfig(); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
