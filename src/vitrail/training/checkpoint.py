"""Checkpoints: everything a resume needs, with a digest of each file."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.errors import UnsafeError, WeightsError
from vitrail.weights import disk, files

REQUIRED = {"model.safetensors", "optimizer.safetensors", "loop.safetensors"}

Parts = Mapping[str, Mapping[str, Tensor]]  # "model", "ema", "optimizer", "loop"


class Checkpoint(NamedTuple):
    """A checkpoint that was read whole: its step and its parts by name."""

    step: int
    parts: dict[str, dict[str, Tensor]]


class Written(NamedTuple):
    """A checkpoint in a folder beside its place: its values are safe from what training does."""

    beside: Path
    path: Path
    step: int

    def settle(self) -> Path:
        """Bring it down to the disk, whole or not at all, with a digest of each file."""
        with disk.filling(self.beside, self.path):
            digests = {}
            for file in sorted(self.beside.iterdir()):
                digests[file.name] = files.sha256(file)
                disk.sync(file)
            disk.write_json(self.beside / "index.json", {"step": self.step, "sha256": digests})
        disk.place_folder(self.beside, self.path)
        return self.path


def write(folder: Path, step: int, parts: Parts) -> Written:
    """Write the files of `folder/step-N`; what waits for the disk, and digests, is `settle`.

    1.0 GB of ViT-B/16 with AdamW: a third of the time of torch.save (benchmarks/checkpoint.py).
    """
    path = folder / f"step-{step:08d}"
    disk.check_room(path, sum(t.nbytes for tensors in parts.values() for t in tensors.values()))
    beside = disk.begin_folder(path)
    with disk.filling(beside, path):
        for name, tensors in parts.items():
            files.write_tensors_plainly(beside / f"{name}.safetensors", tensors)
    return Written(beside, path, step)


def save(folder: Path, step: int, parts: Parts) -> Path:
    """Write `folder/step-N` down to the disk, whole or not at all."""
    return write(folder, step, parts).settle()


def prune(folder: Path, step: int, keep: int, broken: Collection[int] = ()) -> None:
    """Drop all but the newest `keep` up to `step`: the older ones are for when one breaks.

    Later ones, and the `broken`, were passed over when the run was taken up.
    """
    found = steps(folder)
    whole = sorted((s for s in found if s <= step and s not in broken), reverse=True)
    for old in found.keys() - set(whole[:keep]):
        disk.remove_folder(found[old])


def newest(folder: Path) -> tuple[Checkpoint | None, dict[int, str]]:
    """Give the newest whole checkpoint, if any, and by step what was wrong with newer ones."""
    broken = {}
    for step, path in sorted(steps(folder).items(), reverse=True):
        try:
            return read(path), broken
        except (WeightsError, UnsafeError) as error:
            broken[step] = str(error)
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
        and all(re.fullmatch(r"\w+\.safetensors", name) for name in digests)
    ):
        raise WeightsError(f"checkpoint {path}: index.json is not as it was written")
    for name in digests:  # a file that was cut is found by its size, before any is read whole
        files.open_weights(path / name)
    parts = {}
    for name, digest in digests.items():
        if files.sha256(path / name) != digest:
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
