"""What a dialect is: how one ecosystem names and lays out weights, and what its files can say."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import WeightsError
from vitrail.model.config import ViTConfig
from vitrail.weights.formats.stored import Stored
from vitrail.weights.rules import Rule
from vitrail.weights.target import FORMS

Stores = Mapping[str, Stored]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


# What the models of a preset's family were trained with, where the file does not say it.
_FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("deit", {**IMAGENET, "crop": 0.9}),
    ("mae", {**IMAGENET, "crop": 0.9}),
    ("dinov", IMAGENET),
    ("dino", {**IMAGENET, "crop": 0.9}),
    ("clip", CLIP),
    ("siglip", {**HALF, "resize": "square"}),
    ("vit", {**HALF, "crop": 0.9}),
    ("simple", {**HALF, "crop": 0.875}),
)


def of_preset(name: str) -> dict[str, Any]:
    """Give the preprocessing of a preset's family; nothing for a model of this project's own."""
    return next((how for family, how in _FAMILIES if name.startswith(family)), {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """What an ecosystem's own files beside the weights say, in our words."""

    config: Mapping[str, Any] = field(default_factory=dict)  # ViTConfig fields
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # Preprocess fields
    labels: tuple[str, ...] = ()
    # What an export to the same dialect takes over, the name of their model for instance.
    keep: Mapping[str, Any] = field(default_factory=dict)


class Writing(NamedTuple):
    """What an export is made of: tensors under the names of the rules, and what goes with them."""

    tensors: dict[str, Tensor]
    config: ViTConfig
    preprocess: Preprocess
    labels: tuple[str, ...]
    kept: Mapping[str, Any]  # of a file of that dialect, where the model comes from one


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """The files of an export: weights under their names, and JSON files beside them."""

    tensors: Mapping[str, Tensor]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """One way to write a plain ViT down: a table of rules, and what is not in the tensors.

    Two dialects may share a `name`: Hugging Face's ViT and its CLIP are variants of one.
    """

    name: str  # as `--to` and `dialect=` take it
    variant: str  # whose files these are, for people
    marks: Callable[[Stores], bool]  # does a file with these tensors look like it?
    rules: tuple[Rule, ...]
    asked_for: bool = False  # never found by itself: its names are those of another dialect
    # What else the same tensors have been called, as patterns and their replacements.
    spellings: tuple[tuple[str, str], ...] = ()
    # Tensors that belong to the file and not to the image encoder: a pattern, and what they are.
    leave: tuple[tuple[str, str], ...] = ()
    # What the home of these files runs them with, where nothing else says so.
    home: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Callable[[ViTConfig], Mapping[str, Any]] = lambda config: IMAGENET
    # Where the home is not everybody's: what is told when nothing but the home says a field.
    unsure: Mapping[str, str] = field(default_factory=dict)
    # What an export can say of such a model, beginning from `plain`: each field's only value, or a
    # tuple of the values to choose from, the one to change to first.
    holds: Callable[[ViTConfig], Mapping[str, Any]] = lambda config: {}
    # More that these tensors tell: (tensors, what is known) -> ViTConfig fields.
    tells: Callable[[Stores, Mapping[str, Any]], dict[str, Any]] = lambda stores, known: {}
    # The tensors as the rules name them, where more than spelling differs (scanned blocks).
    arrange: Callable[[Stores], tuple[Stores, dict[str, Any]]] = lambda stores: (stores, {})
    # Their JSON file read: (files by name) -> what they say.
    sidecar: Callable[[Mapping[str, Mapping[str, Any]]], Sidecar] = lambda files: Sidecar()
    # Their files written.
    export: Callable[[Writing], Export] = lambda model: Export(tensors=model.tensors)

    @property
    def writes(self) -> str:
        """Give "folder", or the ending of a file."""
        return FORMS[self.name]

    def spelled(self, stores: Stores) -> dict[str, Stored]:
        """Give the tensors under the names that the rules use; two may not become one."""
        found: dict[str, Stored] = {}
        for name, stored in stores.items():
            new = spell(name, self.spellings)
            if new in found:
                raise WeightsError(f'two tensors would both be "{new}", {name} is one of them')
            found[new] = stored
        return found

    def why_left(self, name: str) -> str | None:
        """Give why a tensor, spelled as in the rules, is no part of the image encoder, if so."""
        return next((why for pattern, why in self.leave if re.fullmatch(pattern, name)), None)


def plain(config: ViTConfig) -> dict[str, Any]:
    """Give what the first ViT can say, field by field: what others can is said against it.

    Sizes may be anything and are left out. Positions come before the rows of the prefix in them.
    """
    return {
        "mlp": "plain",
        "activation": "gelu",
        "norm_eps": 1e-6,
        "head_width": config.width // config.heads,
        "qkv_bias": "all",
        "patch_bias": True,
        "patch_norms": False,
        "proj_bias": True,
        "mlp_bias": True,
        "head_bias": True,
        "qk_norm": False,
        "layer_scale": None,
        "class_token": True,
        "distillation_token": False,
        "registers": 0,
        "positions": "learned",
        "prefix_positions": 1,
        "position_resize": config.position_resize,
        "rope_base": config.rope_base,
        "pre_norm": False,
        "pre_logits": False,
        "final_norm": "tokens",
        "pooling": "cls",
    }


def spell(name: str, spellings: Iterable[tuple[str, str]]) -> str:
    """Give the name with each pattern replaced."""
    for pattern, replacement in spellings:
        name = re.sub(pattern, replacement, name)
    return name


def has(*patterns: str) -> Callable[[Stores], bool]:
    """Give a test: does every pattern match the whole name of some tensor?"""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda stores: all(any(p.fullmatch(name) for name in stores) for p in compiled)
