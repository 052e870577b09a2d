"""Files of safetensors: a header in JSON, checked against the file to the last byte.

The package of that name maps the file: its tensors lie at odd addresses, for which some kernels
give other last bits, and a file that is cut afterwards takes the process with it.
"""

import json
from math import prod
from typing import Any

import torch

from vitrail.errors import WeightsError
from vitrail.weights.formats.stored import (
    AGAIN,
    MOST_JSON,
    RawFile,
    Stored,
    clean,
    is_count,
    is_shape,
)

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


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
