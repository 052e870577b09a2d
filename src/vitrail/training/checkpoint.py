"""Checkpoints: everything a resume needs, with a digest of each file."""

import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.errors import UnsafeError, WeightsError
from vitrail.training.world import World
from vitrail.weights import disk, files

REQUIRED = {"model", "optimizer", "loop"}
NAME = r"(\w+)(?:\.(\d{1,6})-of-(\d{1,6}))?\.safetensors"  # a part, or one process' pieces of it

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


def save_shards(folder: Path, step: int, parts: Parts, world: World) -> Path:
    """Write `folder/step-N` by all processes, each the pieces that it has."""
    path = folder / f"step-{step:08d}"
    size = sum(world.exchange(sum(t.nbytes for part in parts.values() for t in part.values())))
    world.alone(lambda: disk.check_room(path, size))
    with ExitStack() as stack:  # it drops what is there where one process cannot write
        beside = world.alone(lambda: stack.enter_context(disk.new_folder(path)))
        written = world.together(lambda: _write_shard(beside, parts, world))
        digests = {name: d for shard in world.exchange(written) for name, d in shard.items()}

        def finish() -> None:
            disk.write_json(beside / "index.json", {"step": step, "sha256": digests})
            stack.close()

        world.alone(finish)
    return path


def _write_shard(beside: Path, parts: Parts, world: World) -> dict[str, str]:
    names = {part: f"{part}.{world.rank}-of-{world.size}.safetensors" for part in parts}
    with disk.written(beside):
        return {names[p]: files.write_tensors(beside / names[p], parts[p]) for p in parts}


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
        and _is_whole(list(digests))
    ):
        raise WeightsError(f"checkpoint {path}: index.json is not as it was written")
    for name in digests:  # a file that was cut is found by its size, before any is read whole
        files.open_weights(path / name)
    pieces: dict[str, list[dict[str, Tensor]]] = {}
    for name in sorted(digests, key=_rank):
        if files.sha256(path / name) != digests[name]:
            raise WeightsError(f"checkpoint {path}: {name} is not as it was written")
        pieces.setdefault(name.partition(".")[0], []).append(files.read_tensors(path / name))
    return Checkpoint(step, {part: _joined(shards) for part, shards in pieces.items()})


def _is_whole(names: list[str]) -> bool:
    """Say whether these are all files of a checkpoint: of each part one, or one by each process."""
    found = [re.fullmatch(NAME, name) for name in names]
    if None in found or not {match[1] for match in found if match} >= REQUIRED:
        return False
    return all(
        f"{match[1]}.{rank}-of-{match[3]}.safetensors" in names
        for match in found
        if match and match[3]
        for rank in range(int(match[3]))
    )


def _rank(name: str) -> int:
    match = re.fullmatch(NAME, name)
    return int(match[2] or 0) if match else 0


def _joined(shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Give whole tensors; FSDP2 cuts them along their first axis."""
    if len(shards) == 1:
        return shards[0]
    names = dict.fromkeys(name for shard in shards for name in shard)
    pieces = {name: [shard[name] for shard in shards if name in shard] for name in names}
    return {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in pieces.items()}


def steps(folder: Path) -> dict[int, Path]:
    """Give the checkpoint folders by their step."""
    found = {path: re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in found.items() if match}


def numbers(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Give plain numbers as tensors, exactly, so that they can stand in a part."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
