"""Weight files: the only place that opens one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vitrail.errors import DataError, WeightsError
from vitrail.weights.disk import write_bytes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a safetensors file by name; anything else is a `WeightsError`."""
    if not path.is_file():
        raise WeightsError(f"there is no weight file {path}")
    try:
        # Copies: what `load_file` gives lies in the mapped file, at odd addresses, for which some
        # kernels give other last bits, and changes or crashes when the file does.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise WeightsError(
            f"{path} is no whole safetensors file ({size:,} bytes): {error}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Give the object in a JSON file; a missing or broken one is a `WeightsError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds {type(values).__name__}, not an object")
    return values


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Give the rows of a file of JSON lines; a last line that was cut short is not one.

    A file that is not there has none; a line that is no JSON object is a `DataError`.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is no row: {line.strip()[:80]}; remove the line")
        rows.append(row)
    return rows


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, down to the disk, and give its sha256."""
    data = safetensors.torch.save({name: t.detach().contiguous() for name, t in tensors.items()})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def sha256(path: Path) -> str:
    """Give the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
