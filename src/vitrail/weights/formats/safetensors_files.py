"""Files of safetensors: a header in JSON, checked against the file to the last byte.

The package of that name maps the file: its tensors lie at odd addresses, for which some kernels
give other last bits, and a file that is cut afterwards takes the process with it.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.formats.stored import (
    AGAIN,
    RawFile,
    Stored,
    clean,
    is_count,
    is_shape,
    memory,
)
from vitrail.weights.json_files import MOST_JSON

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The package of that name sorts tensors by these, the last first, and then by name.
_ORDER = [
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16", "F16", "BF16", "I32", "U32",
    "F32", "F64", "I64", "U64",
]  # fmt: skip


def safetensors_pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Iterator[bytes | memoryview], int]:
    """Give a safetensors file in pieces, and its size: the same bytes as of the package.

    A piece is the memory of a tensor itself, which must stay as it is until it is written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    names = sorted(tensors, key=lambda name: (-_ORDER.index(_NAMES[tensors[name].dtype]), name))
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text

    def pieces() -> Iterator[bytes | memoryview]:
        yield head
        for name in names:
            yield memory(tensors[name].detach().cpu().contiguous())

    return pieces(), len(head) + end


def read_safetensors(file: RawFile) -> tuple[dict[str, Stored], dict[str, str]]:
    """Give the tensors of a safetensors file in their order there, and its metadata."""
    count = int.from_bytes(file.bytes(0, min(file.size, 8)), "little")
    if file.size < 8 or 8 + count > file.size or count > MOST_JSON:
        raise WeightsError(
            f"{file.path} is no whole safetensors file: it has {file.size:,} bytes and says that "
            f"its header has {count:,}, of which {MOST_JSON:,} are read at most; {AGAIN}"
        )
    try:
        header = json.loads(file.bytes(8, count).decode("utf-8"), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its __metadata__ is not all text")
        listed = sorted(
            ((*_described(name, entry), name) for name, entry in header.items()),
            key=lambda found: found[:2],
        )
        end = 0
        for start, stop, *_, name in listed:
            if start != end:
                raise ValueError(f"{clean(name)} starts at {start}, not at {end}")
            end = stop
    # RecursionError: JSON nested without an end.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{file.path} is no whole safetensors file: in its header, {error}; {AGAIN}"
        ) from error
    data = 8 + count
    if data + end != file.size:
        raise WeightsError(
            f"{file.path} is no whole safetensors file: {abs(data + end - file.size):,} bytes "
            f"{'are missing' if file.size < data + end else 'too many'}; {AGAIN}"
        )
    tensors = {
        name: file.stored(data + start, shape, dtype) for start, _, shape, dtype, name in listed
    }
    return tensors, metadata


def _described(name: str, entry: Any) -> tuple[int, int, tuple[int, ...], torch.dtype]:
    """Give where a tensor starts and ends, and its shape and dtype; they must agree."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{clean(name)} has no dtype, shape or data_offsets")
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{clean(name)} has the dtype {clean(str(entry['dtype']))}")
    dtype = _DTYPES[entry["dtype"]]
    if not is_shape(shape) or not is_count(start) or not is_count(end):
        raise ValueError(
            f"{clean(name)} has shape {clean(str(shape))} and offsets {clean(f'{start}, {end}')}"
        )
    if prod(shape) * dtype.itemsize != end - start:
        raise ValueError(
            f"{clean(name)} {tuple(shape)} takes {prod(shape) * dtype.itemsize:,} bytes, not "
            f"{end - start:,}"
        )
    return start, end, tuple(shape), dtype


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it says something twice")
    return found
