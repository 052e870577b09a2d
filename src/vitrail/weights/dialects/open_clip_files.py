"""`open_clip_config.json`: what open_clip's models are, their own towers and timm's."""

from collections.abc import Mapping
from typing import Any

from vitrail.weights.dialect import Sidecar
from vitrail.weights.dialects.timm_files import POOLING, from_name

_MODES = {"shortest": "shortest", "squash": "square", "longest": "pad"}


def sidecar(files: Mapping[str, Mapping[str, Any]]) -> Sidecar:
    """Read the image tower's settings, and its preprocessing."""
    stored = files.get("open_clip_config.json", {})
    model = stored.get("model_cfg", stored)
    vision = model.get("vision_cfg")
    if not isinstance(vision, dict):
        return Sidecar()
    config: dict[str, Any] = {}
    said = _preprocess(stored.get("preprocess_cfg") or {})
    if "image_size" in vision:
        size = vision["image_size"]
        config["image_size"] = tuple(size) if isinstance(size, list) else (size, size)
        said["size"] = config["image_size"]
    if "timm_model_name" in vision:
        config |= from_name(vision["timm_model_name"])
        if vision.get("timm_pool") in POOLING:
            config["pooling"] = POOLING[vision["timm_pool"]]
        return Sidecar(config=config, preprocess=said)
    config["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    if "width" in vision:
        config["heads"] = vision["width"] // vision.get("head_width", 64)
    return Sidecar(config=config, preprocess=said)


def _preprocess(known: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {
        name: tuple(map(float, known[name])) for name in ("mean", "std") if name in known
    }
    if known.get("interpolation") in ("bicubic", "bilinear"):
        said["interpolation"] = known["interpolation"]
    return said | {"resize": _MODES[known.get("resize_mode", "shortest")]}
