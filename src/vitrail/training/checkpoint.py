"""Checkpoints: everything a resume needs, with a digest of each file."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights import disk, files

KEPT = 2  # the newest ones; the one before the last is for when the last turns out broken

REQUIRED = {"model.safetensors", "optimizer.safetensors", "loop.safetensors"}

Parts = Mapping[str, Mapping[str, Tensor]]  # "model", "ema", "optimizer", "loop"


class Checkpoint(NamedTuple):
    """A checkpoint that was read whole: its step and its parts by name."""

    step: int
    parts: dict[str, dict[str, Tensor]]


def save(folder: Path, step: int, parts: Parts) -> Path:
    """Write `folder/step-N`, whole or not at all, and drop all but the newest ones."""
    path = folder / f"step-{step:08d}"
    with disk.new_folder(path) as beside:
        digests = {
            f"{name}.safetensors": files.write_tensors(beside / f"{name}.safetensors", tensors)
            for name, tensors in parts.items()
        }
        disk.write_json(beside / "index.json", {"step": step, "sha256": digests})
    found = steps(folder)
    # Later ones are broken, or of a run that was taken up before them: this one is the newest.
    kept = sorted((s for s in found if s <= step), reverse=True)[:KEPT]
    for old in found.keys() - set(kept):
        shutil.rmtree(found[old])
    return path


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Give the newest whole checkpoint, if any, and what was wrong with newer ones."""
    broken = []
    for _, path in sorted(steps(folder).items(), reverse=True):
        try:
            return read(path), broken
        except WeightsError as error:
            broken.append(str(error))
    return None, broken


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; a file that is missing or not as it was written is a `WeightsError`."""
    index = files.read_json(path / "index.json")
    step, digests = index.get("step"), index.get("sha256")
    if not (
        isinstance(step, int)
        and path.name == f"step-{step:08d}"
        and isinstance(digests, dict)
        and digests.keys() >= REQUIRED
    ):
        raise WeightsError(f"checkpoint {path}: index.json is not as it was written")
    parts = {}
    for name, digest in digests.items():
        if not (path / name).is_file() or files.sha256(path / name) != digest:
            raise WeightsError(f"checkpoint {path}: {name} is not as it was written")
        parts[Path(name).stem] = files.read_tensors(path / name)
    return Checkpoint(step, parts)


def steps(folder: Path) -> dict[int, Path]:
    """Give the checkpoint folders by their step."""
    found = {path: re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in found.items() if match}


def numbers(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Give plain numbers as tensors, exactly, so that they can stand in a part."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
