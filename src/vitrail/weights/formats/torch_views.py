"""Tensors as a pickle of torch describes them, and their values as they lie in the file."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.formats.pickles import PLAIN, Attributes, few, left_out
from vitrail.weights.formats.stored import AGAIN, RawFile, Stored, clean, is_count, is_shape

# No weights nest, name or count their tensors past these; a made-up file can in a few bytes.
_DEPTH, _NAME, _VALUES, _TENSORS = 32, 1000, 1_000_000, 100_000


class Storage(NamedTuple):
    """A run of numbers that tensors share: its name in the file, and their kind."""

    key: str
    dtype: torch.dtype


class View(NamedTuple):
    """A tensor: which numbers of a storage it shows, counted from `offset` on."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Unreadable(NamedTuple):
    """A tensor that is more, or less, than plain numbers."""

    kind: str


# Quantized numbers, and those below a byte: torch cannot even copy them.
_UNCOPIED = re.compile(r"torch\.(q|u?int[1-7]$)")

Places = Mapping[str, tuple[int, int]]  # where a storage starts in the file, and its bytes


def _rebuild(
    storage: Any, offset: Any, shape: Any, stride: Any,
    grad: Any = False, hooks: Any = None, metadata: Any = None,
) -> View | Unreadable:  # fmt: skip
    return _view(storage, storage.dtype, (offset, shape, stride), metadata)


def _rebuild_v3(
    storage: Any, offset: Any, shape: Any, stride: Any,
    grad: Any, hooks: Any, dtype: Any, metadata: Any = None,
) -> View | Unreadable:  # fmt: skip
    return _view(storage, dtype, (offset, shape, stride), metadata)


def _view(
    storage: Any, dtype: Any, place: tuple[Any, Any, Any], metadata: Any
) -> View | Unreadable:
    offset, shape, stride = place
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor without a storage")
    # Tuples, as torch writes them: lists would be copied once more for each tensor.
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride):
        raise ValueError("a tensor without as many strides as it has axes")
    if not is_count(offset) or not is_shape(shape) or not is_shape(stride):
        raise ValueError("a tensor of a shape that none has")
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        return Unreadable("negated or conjugated")
    if _UNCOPIED.match(str(dtype)):
        return Unreadable(str(dtype))
    return View(storage, dtype, offset, shape, stride)


def _same(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    return function(*few(arguments))


_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "Untyped": torch.uint8,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32,
}  # fmt: skip
_LEFT_OUT = {
    "torch": "Tensor device per_channel_affine per_tensor_affine",
    "torch._tensor": "Tensor",
    "torch.nn.parameter": "Buffer",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
}
_UNREADABLE = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantized",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_wrapper_subclass": "wrapped",
}

# All that a pickle of tensors may name, and what stands for it here.
BUILDERS: Mapping[tuple[str, str], Any] = {
    **PLAIN,
    **{("torch", str(dtype)[6:]): dtype for dtype in vars(torch).values()
       if isinstance(dtype, torch.dtype)},
    **{(module, f"{name}Storage"): dtype for name, dtype in _STORAGES.items()
       for module in ("torch", "torch.cuda", "torch.storage")},
    **{(module, name): left_out for module, names in _LEFT_OUT.items() for name in names.split()},
    **{("torch._utils", name): partial(lambda kind, *_: Unreadable(kind), kind)
       for name, kind in _UNREADABLE.items()},
    ("torch", "Size"): _same,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _same,
    ("torch._utils", "_rebuild_parameter_with_state"): _same,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch.nn.parameter", "Parameter"): _same,
}  # fmt: skip

# TorchScript says the type of each list by a function around it.
SCRIPT_BUILDERS: Mapping[tuple[str, str], Any] = {
    **BUILDERS,
    **{("torch.jit._pickle", name): _same for name in (
        "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
        "restore_type_tag")},
}  # fmt: skip


def flatten(
    file: RawFile, content: Any, registered: Mapping[str, frozenset[str]]
) -> dict[str, View]:
    """Give the tensors in nested dicts, lists and objects by their keys, joined with dots.

    Of an object whose class is in `registered`, only the tensors that are named there.
    """
    tensors: dict[str, View] = {}
    visited = 0

    def walk(value: Any, name: str, depth: int) -> None:
        nonlocal visited
        many = visited > _VALUES or len(tensors) > _TENSORS
        if many or depth > _DEPTH or len(name) > _NAME:
            raise WeightsError(
                f"{file.path} nests its values as no weights do, below {name[:60]!r}; save the "
                "state dict alone"
            )
        if isinstance(value, Unreadable):
            raise WeightsError(
                f"{file.path}: {clean(name)} is a {value.kind} tensor, not plain numbers; save it "
                "as a plain one"
            )
        if isinstance(value, View) and name in tensors:
            raise WeightsError(f"{file.path} has two tensors named {clean(name)}; rename one")
        if isinstance(value, View):
            tensors[name] = value
        kept = registered.get(value.kind) if isinstance(value, Attributes) else None
        for key, inner in _items(value):
            visited += 1
            if kept is None or key in kept or isinstance(inner, Attributes):
                walk(inner, f"{name}.{key}" if name else str(key), depth + 1)

    walk(content, "", 0)
    return tensors


def _items(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, Attributes):
        value = value.values
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if type(value) in (list, tuple) else ()


def stored(file: RawFile, name: str, view: View, places: Places) -> Stored:
    """Give the values of a view, which must lie inside its storage, and that inside the file."""
    start, nbytes = places.get(view.storage.key, (0, -1))
    last = sum((size - 1) * step for size, step in zip(view.shape, view.stride, strict=True))
    span = 0 if 0 in view.shape else last + 1  # from its first number to its last
    size = view.dtype.itemsize
    if (view.offset + span) * size > nbytes:
        raise WeightsError(
            f"{file.path}: {clean(name)} {view.shape} needs {(view.offset + span) * size:,} bytes "
            f"of its storage, which has {max(nbytes, 0):,}; {AGAIN}"
        )
    if prod(view.shape) * size > max(nbytes, file.size):
        raise WeightsError(
            f"{file.path}: {clean(name)} {view.shape} would take {prod(view.shape) * size:,} "
            f"bytes, and the file has {file.size:,}; it is made to fill the memory, do not use it"
        )
    start += view.offset * size
    if _contiguous(view):
        return file.stored(start, view.shape, view.dtype)
    return Stored(view.shape, view.dtype, partial(_read_strided, file, start, span, view))


def _read_strided(file: RawFile, start: int, span: int, view: View) -> Tensor:
    numbers = file.tensor(start, (span,), view.dtype)
    tensor = torch.empty(view.shape, dtype=view.dtype, device="cpu")
    return tensor.copy_(numbers.as_strided(view.shape, view.stride))


def _contiguous(view: View) -> bool:
    """Tell whether the numbers lie in the file as they do in memory."""
    wanted = 1
    for size, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if size != 1 and step != wanted:
            return False
        wanted *= size
    return True
