"""What an exported file says of itself: all that is needed to answer for an image by it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail import __version__
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, WeightsError
from vitrail.model.config import ViTConfig
from vitrail.weights.json_files import MOST_JSON

KEY = "vitrail"  # of the metadata of an ONNX or OpenVINO file; vitrail.json in a torch package

Dtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an exported file computes, of which images, and what its answers are called.

    `takes` says what its one input is: `images` are normalised, float32 B C H W; `pixels` are
    uint8 B H W C, and what makes them the model's input is a part of the file.
    """

    config: ViTConfig
    preprocess: Preprocess
    labels: tuple[str, ...]
    origin: Mapping[str, Any] | None = None
    dtype: Dtype = "float32"
    takes: Literal["images", "pixels"] = "images"
    any_size: bool = False  # any height and width that the patch divides, else the config's alone

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, float32 B classes: what `Engine.run` gives is the last of them."""
        if not self.config.classes:
            return ("features",)
        return ("probabilities", "logits") if self.takes == "pixels" else ("logits",)

    def input_of(self, images: Tensor) -> Tensor:
        """Give the file's input of images as `Engine.run` takes them, B C H W.

        Raises `ConfigError` for normalised ones where it takes pixels.
        """
        if self.takes == "images":
            pixels = images.dtype == torch.uint8
            return (self.preprocess.normalize(images) if pixels else images.float()).contiguous()
        if images.dtype != torch.uint8:
            raise ConfigError(
                "this file takes pixels, and these images are normalised: export the model "
                "without pixels for them"
            )
        return images.permute(0, 2, 3, 1).contiguous()

    def to_text(self) -> str:
        """Give the JSON that is written into the file."""
        values = {
            "format": "vitrail",
            "version": __version__,
            "architecture": self.config.to_json(),
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "origin": dict(self.origin or {}),
            "dtype": self.dtype,
            "takes": self.takes,
            "any_size": self.any_size,
        }
        # A label may hold what is no UTF-8, and a file of OpenVINO is XML.
        return json.dumps(values, ensure_ascii=True)

    @classmethod
    def from_text(cls, text: str | None, path: object) -> "Exported":
        """Read what `to_text` gave; raises `WeightsError` for a file of another maker."""
        if text is None:
            raise WeightsError(
                f"{path} does not say what its input and its answers mean: vitrail did not write "
                "it. `vitrail export MODEL FILE` writes one that does, from the weights"
            )
        try:
            if len(text) > MOST_JSON:
                raise ValueError(f"more than {MOST_JSON:,} characters")
            stored = json.loads(text)
            labels = stored["labels"]
            if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
                raise ConfigError("labels is no list of texts")
            facts = cls(
                config=ViTConfig.from_json(stored["architecture"]),
                preprocess=Preprocess.from_json(stored["preprocess"]),
                labels=tuple(labels),
                origin=stored.get("origin") or None,
                **{name: stored[name] for name in ("dtype", "takes", "any_size")},
            )
            facts._check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as e:
            raise WeightsError(
                f"{path}: what it says of itself cannot be read ({type(e).__name__}: {e}); export "
                "the model again"
            ) from e
        return facts

    def _check(self) -> None:
        for name, choices in (
            ("dtype", ("float32", "bfloat16", "int8")),
            ("takes", ("images", "pixels")),
            ("any_size", (True, False)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}")
        if self.origin is not None and not isinstance(self.origin, Mapping):
            raise ConfigError("origin is no table")
        if len(self.labels) != self.config.classes:
            raise ConfigError(f"{len(self.labels)} labels for {self.config.classes} classes")
        if self.preprocess.channels != self.config.channels:
            raise ConfigError(f"preprocessing of {self.preprocess.channels} channels")
