"""Files of torch.save and of TorchScript: where their pickle and their storages lie.

`torch.load(weights_only=True)` calls torch's own constructors, so a file of 200 bytes can ask it
for any amount of memory, and with `mmap=True` a file that is cut takes the process with it. Here
the pickle is read by `pickles.Machine`, which calls nothing of torch, the values by plain reads.
"""

import re
import struct
from collections.abc import Mapping
from functools import partial
from io import BufferedReader, BytesIO, RawIOBase
from typing import Any

import torch

from vitrail.errors import WeightsError
from vitrail.weights.formats.pickles import Attributes, Machine, refuse
from vitrail.weights.formats.stored import AGAIN, RawFile, Stored
from vitrail.weights.formats.torch_views import (
    BUILDERS,
    SCRIPT_BUILDERS,
    Places,
    Storage,
    flatten,
    stored,
)
from vitrail.weights.formats.zips import Member, unpack

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of an old file

Builders = Mapping[tuple[str, str], Any]


def read_zip(file: RawFile, members: dict[str, Member], root: str) -> dict[str, Stored]:
    """Give the tensors of a file that torch.save wrote as a zip."""
    content = _run(file, members[f"{root}data.pkl"], BUILDERS)
    places = _zip_places(file, members, root)
    return {name: stored(file, name, v, places) for name, v in flatten(file, content).items()}


def read_torchscript(file: RawFile, members: dict[str, Member], root: str) -> dict[str, Stored]:
    """Give the tensors of a TorchScript archive by the names of its `state_dict()`."""
    content = _run(file, members[f"{root}data.pkl"], SCRIPT_BUILDERS)
    views = flatten(file, content, _registered(file, members, f"{root}code/"))
    places = _zip_places(file, members, root)
    return {name: stored(file, name, view, places) for name, view in views.items()}


def read_legacy(file: RawFile) -> dict[str, Stored]:
    """Give the tensors of a file in torch.save's format before 1.6: pickles, then storages."""
    storages: dict[str, Storage] = {}
    machine = _machine(file, BUILDERS, storages, file.bytes(0, min(file.size, 2**16)))
    with file.open() as raw, _Clamped(raw, file.size) as source:
        if machine.run(source) != _MAGIC or machine.run(source) != _PROTOCOL:
            raise WeightsError(
                f"{file.path} is a bare pickle, not a file of torch.save; load it where it was "
                "made and save its tensors with torch.save or safetensors"
            )
        about, content, keys = machine.run(source), machine.run(source), machine.run(source)
        if not isinstance(about, dict) or about.get("little_endian") is not True:
            raise _other_byteorder(file)
        places = _legacy_places(file, source, keys, storages)
    return {name: stored(file, name, v, places) for name, v in flatten(file, content).items()}


class _Clamped(BufferedReader):
    """A reader that makes no room for more than the file has left."""

    def __init__(self, raw: RawIOBase, size: int) -> None:
        super().__init__(raw)
        self.end = size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.end - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _run(file: RawFile, member: Member, builders: Builders) -> Any:
    data = unpack(file, member)
    return _machine(file, builders, {}, data).run(BytesIO(data))


def _machine(
    file: RawFile, builders: Builders, storages: dict[str, Storage], data: bytes
) -> Machine:
    """Give the machine for a pickle that starts with `data`; it notes the storages it meets."""

    def find(module: str, name: str) -> Any:
        if (module, name) in builders:
            return builders[module, name]
        if builders is SCRIPT_BUILDERS and f"{module}.".startswith("__torch__."):
            return partial(Attributes, f"{module}.{name}")
        # Every module has this attribute, and no state dict.
        refuse(file, module, name, whole_module=b"_forward_pre_hooks" in data)

    def load(identity: Any) -> Storage:
        word, dtype, key, _, _, *view = identity
        if word != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise TypeError(f"{str(word)[:20]} is no storage")
        storage = Storage(str(key), dtype)
        return storages.setdefault(storage.key, storage)

    return Machine(file, find, load)


def _zip_places(file: RawFile, members: dict[str, Member], root: str) -> Places:
    order = members.get(f"{root}byteorder")
    if order and unpack(file, order) != b"little":
        raise _other_byteorder(file)
    storages = {n: m for n, m in members.items() if n.startswith(f"{root}data/")}
    if any(member.deflated for member in storages.values()):
        raise WeightsError(
            f"{file.path} was compressed by another tool; torch stores its numbers plain: load it "
            "with torch and save it again"
        )
    return {n.removeprefix(f"{root}data/"): (m.start, m.size) for n, m in storages.items()}


def _legacy_places(
    file: RawFile, source: BufferedReader, keys: Any, storages: Mapping[str, Storage]
) -> Places:
    """Walk over the storages; each one says its count first."""
    places = {}
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(str(key)[:80])
        head = source.read(8)
        if storage is None or len(head) < 8:
            raise WeightsError(f"{file.path} is cut: numbers are missing at its end; {AGAIN}")
        nbytes = struct.unpack("<q", head)[0] * storage.dtype.itemsize
        start = source.tell()
        if not 0 <= nbytes <= file.size - start:
            missing = start + nbytes - file.size
            raise WeightsError(f"{file.path} is cut: {missing:,} bytes are missing; {AGAIN}")
        places[storage.key] = (start, nbytes)
        source.seek(start + nbytes)
    return places


_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.M
)


def _registered(file: RawFile, members: dict[str, Member], code: str) -> dict[str, frozenset[str]]:
    """Give the parameters and buffers of each class, which the code of an archive lists."""
    found = {}
    for path, member in members.items():
        if path.startswith(code) and path.endswith(".py"):
            module = path.removeprefix(code).removesuffix(".py").replace("/", ".")
            text = unpack(file, member).decode("utf-8", "replace")
            for kind, parameters, buffers in _CLASS.findall(text):
                names = re.findall(r'"([^"]*)"', f"{parameters} {buffers}")
                found[f"{module}.{kind}"] = frozenset(names)
    return found


def _other_byteorder(file: RawFile) -> WeightsError:
    return WeightsError(
        f"{file.path} was saved by a machine of the other byte order; save it again on this one"
    )
