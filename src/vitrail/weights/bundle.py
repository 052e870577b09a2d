"""The bundle: a model with its preprocessing, its class names and where it comes from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitrail import __version__
from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, OutputError, WeightsError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights import disk, files
from vitrail.weights.formats.stored import Stored


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """All that is needed to answer for an image."""

    model: ViT
    preprocess: Preprocess
    labels: tuple[str, ...]
    origin: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        classes, channels = self.model.config.classes, self.model.config.channels
        if classes != len(self.labels):
            raise ConfigError(f"{len(self.labels)} labels for a model of {classes} classes")
        if channels != self.preprocess.channels:
            raise ConfigError(
                f"the preprocessing gives {self.preprocess.channels} channels, the model reads "
                f"{channels}"
            )

    def digest(self) -> str:
        """Give a digest of all that decides an answer: weights, arithmetic, images, labels."""
        about = [self.model.config.to_json(), self.preprocess.to_json(), list(self.labels)]
        digest = hashlib.sha256(json.dumps(about).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def save(bundle: Bundle, folder: str | Path) -> Path:
    """Write the bundle to `folder`, whole or not at all, in place of a bundle that was there.

    Raises `OutputError` where that cannot be written.
    """
    folder = Path(folder).expanduser()
    _check_place(folder)
    config = {
        "format": "vitrail",
        "version": __version__,
        "architecture": bundle.model.config.to_json(),
        "preprocess": bundle.preprocess.to_json(),
        "labels": list(bundle.labels),
        "origin": dict(bundle.origin or {}),
        "metrics": dict(bundle.metrics),
    }
    with disk.new_folder(folder) as beside:
        files.write_tensors(beside / "model.safetensors", bundle.model.state_dict())
        disk.write_json(beside / "config.json", config)
    return folder


def default_preprocess(config: ViTConfig) -> Preprocess:
    """Give the preprocessing of a model that brings none: its size, values from -1 to 1."""
    half = (0.5,) * config.channels
    return Preprocess(size=config.image_size, mean=half, std=half)


def read_config(folder: Path) -> tuple[ViTConfig, dict[str, Any]]:
    """Give the architecture of a bundle and all of its `config.json`."""
    path = folder / "config.json"
    stored = files.read_json(path)
    if stored.get("format") != "vitrail":
        raise WeightsError(f'{path} does not say "format": "vitrail"; this is another tool\'s file')
    wrong = [
        f"{key} is no {word}"
        for key, kind, word in (
            ("architecture", dict, "table"),
            ("preprocess", dict, "table"),
            ("labels", list, "list of texts"),
        )
        if not isinstance(stored.get(key, kind()), kind)
    ]
    if wrong or not all(isinstance(label, str) for label in stored.get("labels", [])):
        raise WeightsError(f"{path}: {'; '.join(wrong) or 'labels is no list of texts'}")
    missing = [key for key in ("architecture", "preprocess", "labels") if key not in stored]
    if missing:
        raise WeightsError(f"{path} lacks {', '.join(missing)}")
    try:
        return ViTConfig.from_json(stored["architecture"]), stored
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def _check_place(folder: Path) -> None:
    """Refuse to put a bundle in the place of anything but a bundle."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a bundle needs a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        ours = files.read_json(folder / "config.json").get("format") == "vitrail"
    except WeightsError:
        ours = False
    if not ours:
        raise OutputError(f"{folder} holds other files and no bundle; give a new or empty folder")


def check_fit(
    config: ViTConfig, tensors: Mapping[str, Stored], path: Path, changes: Mapping[str, Any]
) -> None:
    """Raise `WeightsError` that names what is missing, unexpected and misshapen.

    `changes` are the fields of the architecture that the caller gave instead of the stored ones.
    """
    lists = misfits(config, tensors)
    lists["no numbers"] = [
        f"{name} {tensor.dtype}"
        for name, tensor in tensors.items()
        if name not in lists["unexpected"] and not tensor.dtype.is_floating_point
    ]
    if any(lists.values()):
        cure = "the two files are not of one model: save the bundle again, or fetch it whole"
        if changes:
            cure = f"the tensors contradict what was given: {', '.join(changes)}; leave it out"
        raise WeightsError(
            f"{path} does not fit the architecture in its config.json:{listed(lists)}\n{cure}"
        )


def misfits(config: ViTConfig, tensors: Mapping[str, Stored]) -> dict[str, list[str]]:
    """Give what a model of this architecture misses in `tensors`, and what does not fit it."""
    with torch.device("meta"):  # one block stands for all
        one = ViT(config.replace(depth=min(config.depth, 1))).state_dict()
    # A depth that nothing fills is not listed: one block more than there are is missing too.
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in one.items():
        numbers = range(min(config.depth, len(blocks) + 1)) if name.startswith("blocks.0.") else [0]
        for i in numbers:
            wanted[name.replace("blocks.0.", f"blocks.{i}.")] = tuple(tensor.shape)
    return {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "misshapen": [
            f"{name} {tensors[name].shape}, not {shape}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }


def listed(lists: Mapping[str, Sequence[str]]) -> str:
    """Give a row for each list that holds something: how many, and the first five."""
    return "".join(
        f"\n  {kind:10}  {len(names):3}  {', '.join([*names[:5], *['...'] * (len(names) > 5)])}"
        for kind, names in lists.items()
        if names
    )
