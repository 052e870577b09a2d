"""vitrail: the plain Vision Transformer, whole.

Everything here loads on first use, so that `import vitrail` costs nothing and needs no torch.
"""

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitrail.data.config import Augment
    from vitrail.data.preprocess import Preprocess
    from vitrail.data.sources import open_data
    from vitrail.engines.build import engine
    from vitrail.engines.exported_files import read_export
    from vitrail.explaining.explain import Explanation, explain
    from vitrail.exporting.export import export
    from vitrail.inference.embed import embed
    from vitrail.inference.evaluate import evaluate
    from vitrail.inference.predict import predict
    from vitrail.model.config import DropRates, PositionResize, ViTConfig
    from vitrail.model.presets import presets
    from vitrail.model.shapes import summary
    from vitrail.model.vit import (
        AttentionPooling,
        ClassificationHead,
        Encoder,
        EncoderBlock,
        FeedForward,
        MultiHeadAttention,
        PatchEmbedding,
        ViT,
        create,
    )
    from vitrail.training.loop import Run, train
    from vitrail.training.recipe import Recipe, read_recipe
    from vitrail.weights.bundle import Bundle, save
    from vitrail.weights.convert import convert
    from vitrail.weights.hub import push
    from vitrail.weights.loading import load

_HOME = {
    "vitrail.data.config": ("Augment",),
    "vitrail.data.preprocess": ("Preprocess",),
    "vitrail.data.sources": ("open_data",),
    "vitrail.engines.build": ("engine",),
    "vitrail.engines.exported_files": ("read_export",),
    "vitrail.explaining.explain": (
        "Explanation",
        "explain",
    ),
    "vitrail.exporting.export": ("export",),
    "vitrail.inference.embed": ("embed",),
    "vitrail.inference.evaluate": ("evaluate",),
    "vitrail.inference.predict": ("predict",),
    "vitrail.model.config": (
        "DropRates",
        "PositionResize",
        "ViTConfig",
    ),
    "vitrail.model.presets": ("presets",),
    "vitrail.model.shapes": ("summary",),
    "vitrail.model.vit": (
        "AttentionPooling",
        "ClassificationHead",
        "Encoder",
        "EncoderBlock",
        "FeedForward",
        "MultiHeadAttention",
        "PatchEmbedding",
        "ViT",
        "create",
    ),
    "vitrail.training.loop": (
        "Run",
        "train",
    ),
    "vitrail.training.recipe": (
        "Recipe",
        "read_recipe",
    ),
    "vitrail.weights.bundle": (
        "Bundle",
        "save",
    ),
    "vitrail.weights.convert": ("convert",),
    "vitrail.weights.hub": ("push",),
    "vitrail.weights.loading": ("load",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    value = getattr(_imported(_MODULE_OF[name]), name)
    globals()[name] = value  # found here the next time
    return value


def _imported(module: str) -> ModuleType:
    """Import a module while the collector of cycles rests.

    An import makes objects that stay, torch's several hundred thousand. To walk through them time
    and again is a tenth of what the first answer of a new process takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(module)
    finally:
        if was_enabled:
            gc.enable()


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
