"""Weight files: the only place that opens one."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.disk import Piece, write_pieces, write_plainly
from vitrail.weights.formats.arrays import read_arrays
from vitrail.weights.formats.foreign import WANTED, foreign
from vitrail.weights.formats.pickles import PICKLE
from vitrail.weights.formats.safetensors_files import read_safetensors, safetensors_pieces
from vitrail.weights.formats.stored import (
    AGAIN,
    RawFile,
    Stored,
    check_total,
    clean,
    look,
    told,
)
from vitrail.weights.formats.torch_files import read_legacy, read_torchscript, read_zip
from vitrail.weights.formats.zips import directory
from vitrail.weights.json_files import read_json, read_rows

__all__ = [
    "Stored", "WeightFile", "open_weights", "read_json", "read_rows", "read_tensors", "sha256",
    "write_npz", "write_tensors", "write_tensors_plainly", "write_torch",
]  # fmt: skip

Kind = Literal["safetensors", "torch", "torchscript", "npz"]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """The tensors of a file by their names in it; none is read yet."""

    path: Path
    kind: Kind
    tensors: dict[str, Stored]
    metadata: dict[str, str]


def open_weights(path: Path) -> WeightFile:
    """Open a weight file of any kind, or the index of one in parts.

    Its content tells what it is. Raises `UnsafeError` where opening it could run code, and
    `WeightsError` that says what it is where it is no weight file, or a broken one.
    """
    file = look(path)
    return _open_index(file) if _is_json(file) else _open_file(file)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a safetensors file by name; anything else is a `WeightsError`."""
    weights = open_weights(path)
    if weights.kind != "safetensors":
        raise WeightsError(
            f"{path} is no whole safetensors file but a {weights.kind} file; `vitrail convert` "
            "makes a bundle of it"
        )
    return {name: tensor.read() for name, tensor in weights.tensors.items()}


def _is_json(file: RawFile) -> bool:
    # The eight bytes of a safetensors file's length may start with a brace, but end with zeros.
    head = file.bytes(0, min(file.size, 8))
    return head[:1] == b"{" and b"\0" not in head


def _open_file(file: RawFile) -> WeightFile:
    if file.path.suffix in (".onnx", ".xml", ".pt2"):
        raise WeightsError(
            f"{file.path} is an exported model: `vitrail predict` and `vitrail eval` run it as it "
            "is, and all else wants the weights that it was made from"
        )
    metadata: dict[str, str] = {}
    head = file.bytes(0, min(file.size, 64))
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        kind, tensors = _read_zip(file)
    # A header's length may begin like a pickle; that it is below 4 GiB and JSON, no pickle says.
    elif head[4:9] == b"\0\0\0\0{":
        kind, (tensors, metadata) = "safetensors", read_safetensors(file)
    elif PICKLE.match(head):
        kind, tensors = "torch", read_legacy(file)
    # Where it says nothing else, the name does: the reader's error tells what is wrong with it.
    elif head[8:9] == b"{" or (file.path.suffix == ".safetensors" and not foreign(file)):
        kind, (tensors, metadata) = "safetensors", read_safetensors(file)
    else:
        begins = f"{file.path} begins with {head[:8].hex(' ')}; {WANTED}; {AGAIN}"
        raise foreign(file) or WeightsError(begins)
    check_total(file, tensors)
    return WeightFile(file.path, kind, tensors, metadata)


def _read_zip(file: RawFile) -> tuple[Kind, dict[str, Stored]]:
    members = directory(file)
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) == 1:
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in members:
            return "torchscript", read_torchscript(file, members, root)
        return "torch", read_zip(file, members, root)
    if members and all(name.endswith(".npy") for name in members):
        return "npz", read_arrays(file, members)
    inside = clean(", ".join(list(members)[:5])) or "nothing"
    raise WeightsError(
        f"{file.path} is a zip file with {inside}, neither of torch nor of numpy; {WANTED}; "
        "unpack it and name the weight file in it"
    )


def _open_index(file: RawFile) -> WeightFile:
    """Open a file in parts, each of which must hold what the index says."""
    index = read_json(file.path)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise WeightsError(
            f"{file.path} is JSON with {clean(', '.join(index))}, no index of weights in parts; "
            f"{WANTED}; name the weight file itself"
        )
    parts = {part: _open_part(file, part) for part in sorted(set(names.values()))}
    if len({weights.kind for weights in parts.values()}) > 1:
        raise WeightsError(f"the parts of {file.path} are of several kinds; {AGAIN}")
    for name, part in names.items():
        if name not in parts[part].tensors:
            raise WeightsError(
                f"{file.path} says that {part} holds {clean(name)}, which it does not; the files "
                "are not of one model: fetch them all again"
            )
    if not parts:
        raise WeightsError(f"{file.path} names no tensors; {AGAIN}")
    metadata = {key: text for weights in parts.values() for key, text in weights.metadata.items()}
    tensors = {name: parts[part].tensors[name] for name, part in names.items()}
    return WeightFile(file.path, next(iter(parts.values())).kind, tensors, metadata)


def _open_part(index: RawFile, part: str) -> WeightFile:
    # No disk has longer names than 255 bytes, and no error should be as long as an index.
    if part in ("", ".", "..") or len(part) > 255 or re.search(r"[/\\\0]", part):
        raise WeightsError(
            f"{index.path} names the part {clean(part)}; parts lie beside their index: put it "
            "there and write its name alone"
        )
    path = index.path.parent / part
    with told(path):
        if not path.is_file():
            raise WeightsError(f"{index.path} names {clean(part)}, which is not there; fetch it")
    return _open_file(look(path))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, down to the disk, and give its sha256."""
    return _write(path, *safetensors_pieces(tensors, metadata or {}))


def write_tensors_plainly(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file into a folder that is still beside its place."""
    write_plainly(path, *safetensors_pieces(tensors, {}))


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a state dict as torch.save does, down to the disk, and give its sha256."""
    # Clones: of a part of a tensor, torch.save would write the whole.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    torch.save(own, buffer)
    return _write(path, [buffer.getbuffer()], buffer.getbuffer().nbytes)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write an .npz file, not packed and always the same bytes, and give its sha256.

    bfloat16 goes in as two bytes of nothing (`V2`), which is how JAX writes it.
    """
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            # A member's time would make other bytes each time: this one stays at 1980.
            with archive.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return _write(path, [buffer.getbuffer()], buffer.getbuffer().nbytes)


def sha256(path: Path) -> str:
    """Give the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, pieces: Iterable[Piece], size: int) -> str:
    digest = hashlib.sha256()

    def hashed() -> Iterator[Piece]:
        for piece in pieces:
            digest.update(piece)
            yield piece

    write_pieces(path, hashed(), size)
    return digest.hexdigest()
