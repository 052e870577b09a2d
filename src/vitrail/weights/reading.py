"""Reading another library's weights: found, recognized, named as ours, and nothing lost unseen."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError, WeightsError
from vitrail.model.config import ViTConfig
from vitrail.weights import architecture, files, rules
from vitrail.weights.bundle import listed, misfits
from vitrail.weights.dialect import Dialect, Sidecar, of_preset, spell
from vitrail.weights.dialects.table import DIALECTS
from vitrail.weights.formats.stored import Stored
from vitrail.weights.origin import SIDECARS
from vitrail.weights.recognize import recognize

log = logging.getLogger("vitrail")

Files = Mapping[str, Mapping[str, Any]]
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a weight file is, before a single value is read."""

    path: Path
    dialect: Dialect
    wrapper: str
    config: ViTConfig  # as the file is stored
    whence: Mapping[str, str]  # who said it, for each field of the config
    tensors: Mapping[str, Stored]  # under our names
    read: int  # tensors of theirs that these are made of
    unused: Mapping[str, Sequence[str]]  # why -> names of theirs
    preprocess: Preprocess
    labels: tuple[str, ...]
    keep: Mapping[str, Any] = field(default_factory=dict)  # for the way back

    def values(self) -> dict[str, Tensor]:
        """Read every tensor, halves as float32, the precision of the arithmetic."""
        double = all(t.dtype == torch.float64 for t in self.tensors.values())
        found = {}
        for name, stored in self.tensors.items():
            if not stored.dtype.is_floating_point:
                raise WeightsError(f"{self.path}: {name} holds {stored.dtype}, no weights")
            tensor = stored.read()
            found[name] = tensor if double else tensor.float()
        return found


def read_foreign(
    path: Path,
    *,
    sidecars: bool,
    dialect: str | None,
    preset: str | None,
    given: Mapping[str, Any],
) -> Reading:
    """Find out what the weight file at `path` is; with `sidecars`, by the JSON files beside it.

    Raises `WeightsError` that names the file for one that does not fit together.
    """
    opened = files.open_weights(path)
    beside = _sidecars(path.parent) if sidecars else {}
    try:
        return _read(path, opened.tensors, beside, dialect, preset, given)
    except (WeightsError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read(
    path: Path,
    stores: Mapping[str, Stored],
    beside: Mapping[str, Mapping[str, Any]],
    wanted: str | None,
    preset: str | None,
    given: Mapping[str, Any],
) -> Reading:
    said = _said(beside)  # first: what is no plain ViT by its own word, whatever its names
    dialect, inside, wrapper, outside = recognize(stores, wanted)
    arranged, layout = dialect.arrange(inside)
    theirs = dialect.spelled(arranged)
    sidecar = said[dialect.sidecar]
    known = {**dialect.home, **sidecar.config, **given}
    told = dialect.tells(theirs, known)
    if "position_resize" in given:  # a rule of the home, which no tensor shows
        told.pop("position_resize", None)
    shapes, _ = rules.read(dialect.rules, theirs, known | told)
    found = architecture.settle(shapes, told, given, sidecar.config, preset, dialect.home)
    config = found.config
    for name, doubt in dialect.unsure.items():
        if found.whence.get(name) == "the dialect":
            log.warning("%s: %s", path, doubt)
    fields = {name: getattr(config, name) for name in config.__slots__}
    ours, used = rules.read(dialect.rules, theirs, fields)
    spelled = {spell(name, dialect.spellings): wrapper + name for name in arranged}
    unused = _unused(dialect, spelled, used, outside)
    _complete(config, ours, unused)
    keep = dict(sidecar.keep) | ({"layout": layout} if layout else {})
    if dtypes := _dtypes(ours):
        keep["dtypes"] = dtypes
    return Reading(
        path=path,
        dialect=dialect,
        wrapper=wrapper,
        config=config,
        whence=found.whence,
        tensors=ours,
        read=len(used),
        unused=unused,
        preprocess=_fitting(path, dialect, sidecar, preset, config),
        labels=_labels(path, sidecar, config),
        keep=keep,
    )


def _said(beside: Files) -> dict[Callable[[Files], Sidecar], Sidecar]:
    """Give what each dialect's reader finds in the files beside the weights."""
    try:
        return {
            read: read(beside) for read in dict.fromkeys(dialect.sidecar for dialect in DIALECTS)
        }
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(
            f"{' or '.join(beside)} holds what no library writes there ({error}); fetch it again"
        ) from error


def _sidecars(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: files.read_json(folder / name) for name in SIDECARS if (folder / name).is_file()}


def _unused(
    dialect: Dialect, spelled: Mapping[str, str], used: set[str], outside: Sequence[str]
) -> dict[str, list[str]]:
    """Sort what no rule reads by the reason, under the file's own names.

    Without a reason it is unexpected.
    """
    unused: dict[str, list[str]] = {}
    for name, original in spelled.items():
        if name not in used:
            unused.setdefault(dialect.why_left(name) or "unexpected", []).append(original)
    for name in outside:
        unused.setdefault(f"outside the image encoder: {name.split('.')[0]}", []).append(name)
    return unused


def _complete(
    config: ViTConfig, ours: Mapping[str, Stored], unused: Mapping[str, Sequence[str]]
) -> None:
    """Raise `WeightsError` where a tensor is missing, has another shape, or nobody knows it."""
    lists = misfits(config, ours)
    lists["unexpected"] += unused.get("unexpected", ())
    if any(lists.values()):
        raise WeightsError(
            f"these weights are of no plain ViT that fits:{listed(lists)}\n"
            f"of the presets, {architecture.nearest_preset(config)} comes nearest"
        )


def _dtypes(ours: Mapping[str, Stored]) -> dict[str, str]:
    """Give the tensors that are stored in half, so that an export can write them so again.

    The number of a block becomes a star where all blocks are alike.
    """
    half = {
        name: str(t.dtype).removeprefix("torch.") for name, t in ours.items() if t.dtype in HALF
    }
    starred: dict[str, set[str | None]] = {}
    for name in ours:
        starred.setdefault(_star(name), set()).add(half.get(name))
    return {
        (_star(name) if len(starred[_star(name)]) == 1 else name): dtype
        for name, dtype in half.items()
    }


def _star(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", name)


def stored_dtype(name: str, dtypes: Mapping[str, str]) -> torch.dtype | None:
    """Give the half precision in which a tensor of ours came, if it did."""
    said = dtypes.get(name, dtypes.get(_star(name)))
    return getattr(torch, said) if said in ("float16", "bfloat16") else None


def _fitting(
    path: Path, dialect: Dialect, sidecar: Sidecar, preset: str | None, config: ViTConfig
) -> Preprocess:
    try:
        return _preprocess(path, dialect, sidecar, preset, config)
    except (TypeError, ValueError, ArithmeticError, ConfigError) as error:
        raise WeightsError(
            f"the preprocessing in the files beside it is none ({error}); fetch them again"
        ) from error


def _preprocess(
    path: Path, dialect: Dialect, sidecar: Sidecar, preset: str | None, config: ViTConfig
) -> Preprocess:
    """Give the preprocessing that came along, else the preset's, else what the home does."""
    named = {} if preset is None else of_preset(preset)
    if not sidecar.preprocess and not named and "preprocess" in dialect.unsure:
        log.warning("%s: %s", path, dialect.unsure["preprocess"])
    said: dict[str, Any] = {"size": config.image_size, **dialect.preprocess(config)}
    said |= {**named, **sidecar.preprocess}
    for name in ("mean", "std"):
        if len(said[name]) != config.channels:
            average = sum(said[name]) / len(said[name])
            said[name] = (average,) * config.channels
    whole = tuple(max(side // config.patch_size, 1) * config.patch_size for side in said["size"])
    if whole != said["size"]:  # SigLIP's 384 pixels in patches of 14: the rest is cut off
        said["crop"] = said.get("crop", 1.0) * whole[0] / said["size"][0]
        said["size"] = whole
    return Preprocess(**said)


def _labels(path: Path, sidecar: Sidecar, config: ViTConfig) -> tuple[str, ...]:
    names = sidecar.labels
    if len(names) == config.classes:
        return names
    if names and config.classes:
        log.warning("%s: %d class names for %d classes, not used", path, len(names), config.classes)
    return class_names(config.classes)


def class_names(classes: int) -> tuple[str, ...]:
    """Give names to classes that bring none."""
    return tuple(f"class {i}" for i in range(classes))
