"""Hugging Face's `preprocessor_config.json`, read and written.

transformers 5.23, `image_processing_backends.py`, and the feature extractors before version 4.26.
"""

import re
from collections.abc import Mapping
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.errors import WeightsError
from vitrail.weights.dialect import CLIP, HALF, IMAGENET

FILE = "preprocessor_config.json"
NESTED = "processor_config.json"  # where a text's tokenizer stands beside it, since version 5
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# What a class does that names no size of its own: how it resizes, and whether it then cuts.
# The first of each kind is what an export writes where it does not come from another of them.
PROCESSORS: dict[str, tuple[str, bool]] = {
    "ViTImageProcessor": ("square", False),
    "SiglipImageProcessor": ("square", False),
    "DINOv3ViTImageProcessor": ("square", False),
    "DeiTImageProcessor": ("square", True),
    "CLIPImageProcessor": ("shortest", True),
    "BitImageProcessor": ("shortest", True),  # DINOv2's
}

# What the models' own classes do, where there is no file.
SQUARE = {"resize": "square", "interpolation": "bicubic"}
VIT = {**HALF, "resize": "square", "interpolation": "bilinear"}
DEIT = {**HALF, **SQUARE, "crop": 224 / 256}
DINOV2 = {**IMAGENET, "size": (224, 224), "crop": 224 / 256}  # the released files; the class: CLIP
DINOV3 = {**IMAGENET, "resize": "square", "interpolation": "bilinear"}
SIGLIP = {**HALF, **SQUARE}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deit": DEIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "dinov3_vit": DINOV3,
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}


def processor(stored: Mapping[str, Any]) -> str | None:
    """Give the name of the image processor's class, by its present name."""
    name = stored.get("image_processor_type") or stored.get("feature_extractor_type")
    if not isinstance(name, str):
        return None
    return re.sub(r"(FeatureExtractor|ImageProcessor)(Fast|Pil)?$", "ImageProcessor", name)


def read_preprocess(stored: Mapping[str, Any], patch: int) -> dict[str, Any]:
    """Read what is done to an image, as `Preprocess` fields; `patch` must divide the size."""
    said: dict[str, Any] = {}
    if "image_mean" in stored and "image_std" in stored and stored.get("do_normalize", True):
        said |= {name: _numbers(stored[f"image_{name}"]) for name in ("mean", "std")}
    elif not stored.get("do_normalize", True):
        said |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if "resample" in stored:
        if stored["resample"] not in RESAMPLE:
            raise _refused("resample", stored["resample"], "2 (bilinear) or 3 (bicubic)")
        said["interpolation"] = RESAMPLE[stored["resample"]]
    factor = stored.get("rescale_factor") or 1 / 255
    if abs(factor * 255 - 1) > 1e-6:
        raise _refused("rescale_factor", factor, "1/255")
    if not stored.get("do_rescale", True):
        raise _refused("do_rescale", False, "true")
    if stored.get("size") is not None and stored.get("do_resize", True):
        said |= _size(stored, patch)
    return said


def write_preprocess(preprocess: Preprocess, kept: str | None) -> dict[str, Any]:
    """Give a `preprocessor_config.json`; of the classes that do the same, the `kept` one."""
    if preprocess.resize == "pad" or not preprocess.antialias:
        what = 'resize "pad"' if preprocess.resize == "pad" else "resizing without antialias"
        raise WeightsError(f"preprocessing with {what} has no place in Hugging Face's {FILE}")
    tall, wide = (round(side / preprocess.crop) for side in preprocess.size)
    cuts = preprocess.resize == "shortest" or preprocess.crop < 1
    fitting = [name for name, does in PROCESSORS.items() if does == (preprocess.resize, cuts)]
    stored: dict[str, Any] = {
        "image_processor_type": kept if kept in fitting else fitting[0],
        "do_resize": True,
        # It has no word for an image that just covers an oblong window: this shows less of it.
        "size": {"height": tall, "width": wide}
        if preprocess.resize == "square"
        else {"shortest_edge": max(tall, wide)},
        "resample": next(n for n, name in RESAMPLE.items() if name == preprocess.interpolation),
        "do_center_crop": cuts,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if cuts:
        stored["crop_size"] = dict(zip(("height", "width"), preprocess.size, strict=True))
    if preprocess.channels == 3:
        stored["do_convert_rgb"] = True
    return stored


def _size(stored: Mapping[str, Any], patch: int) -> dict[str, Any]:
    """Read size, resize and crop; old files give one number, and their class says what it is."""
    size = stored["size"]
    resize, cuts = PROCESSORS.get(processor(stored) or "", ("square", False))
    if isinstance(size, Mapping):
        if "shortest_edge" not in size and not {"height", "width"} <= size.keys():
            raise _refused("size", size, '"height" and "width", or "shortest_edge"')
        resize = "shortest" if "shortest_edge" in size else "square"
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    resized = _sides(size if resize == "square" else edge)
    cuts = stored.get("do_center_crop", cuts)
    window = _sides(stored["crop_size"]) if cuts and stored.get("crop_size") else resized
    # SigLIP's patches of 14 leave the last pixels of 384 out.
    window = tuple(min(side, n) // patch * patch for side, n in zip(window, resized, strict=True))
    if 0 in window:
        raise _refused("size", size, f"at least one patch of {patch} pixels")
    return {"size": window, "resize": resize, "crop": max(window) / max(resized)}


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, list) else (float(values),) * 3


def _refused(key: str, value: Any, wanted: str) -> WeightsError:
    return WeightsError(
        f"{FILE} says {key} = {value}, and vitrail's preprocessing knows {wanted}; change it "
        "there, or take the file away: then the model's own default is used"
    )
