"""One tiny model for each kind of plain ViT that the presets know."""

import pytest

from conftest import randomize
from vitrail.model.config import ViTConfig
from vitrail.model.presets import table
from vitrail.model.vit import ViT


def _families() -> dict[ViTConfig, str]:
    """Give each preset made tiny, once: presets that differ in size alone become the same one."""
    tiny = {}
    for name, config in table().items():
        small = config.replace(
            image_size=(12, 20), patch_size=4, width=24, depth=3, heads=2, classes=5
        ).replace(head_width=12, mlp_width=40, channels=3)
        tiny.setdefault(small, name)
    return tiny


# No checkpoint of the presets' has them, and the config does.
_MORE = {
    "registers, cls+mean, qk_norm": {"registers": 2, "pooling": "cls+mean", "qk_norm": True},
    "map with class token, no key bias": {"pooling": "map", "qkv_bias": "no_key"},
}
_TINY = _families()
VIT = next(iter(_TINY))  # class token, learned positions: the first of the presets
FAMILIES = [pytest.param(config, id=name) for config, name in _TINY.items()] + [
    pytest.param(
        ViTConfig(
            image_size=(12, 20), patch_size=4, width=24, depth=3, heads=2, classes=5, **changes
        ),
        id=name,
    )
    for name, changes in _MORE.items()
]


def build(config: ViTConfig) -> ViT:
    """Build a model of 3 x 5 patches whose every parameter is drawn."""
    return randomize(ViT(config)).eval()
