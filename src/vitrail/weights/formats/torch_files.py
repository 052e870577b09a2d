"""Files of torch.save and of TorchScript: where their pickle and their storages lie.

`torch.load(weights_only=True)` calls torch's own constructors, so a file of 200 bytes can ask it
for any amount of memory, and with `mmap=True` a file that is cut takes the process with it. Here
the pickle is read by `pickles.Machine`, which calls nothing of torch, the values by plain reads.
"""

import re
import struct
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any

import torch

from vitrail.errors import WeightsError
from vitrail.weights.formats.pickles import MOST_PICKLE, Attributes, Machine, as_text, few, refuse
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

_CODE_BYTES = 16 * 2**20  # of TorchScript; that of a ViT is below 1 MB
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of an old file

Builders = Mapping[tuple[str, str], Any]


def read_zip(file: RawFile, members: dict[str, Member], root: str) -> dict[str, Stored]:
    """Give the tensors of a file that torch.save wrote as a zip."""
    content = _run(file, members[f"{root}data.pkl"], BUILDERS)
    places = _zip_places(file, members, root)
    return {name: stored(file, name, v, places) for name, v in flatten(file, content, {}).items()}


def read_torchscript(file: RawFile, members: dict[str, Member], root: str) -> dict[str, Stored]:
    """Give the tensors of a TorchScript archive by the names of its `state_dict()`."""
    content = _run(file, members[f"{root}data.pkl"], SCRIPT_BUILDERS)
    views = flatten(file, content, _registered(file, members, f"{root}code/"))
    places = _zip_places(file, members, root)
    return {name: stored(file, name, view, places) for name, view in views.items()}


def read_legacy(file: RawFile) -> dict[str, Stored]:
    """Give the tensors of a file in torch.save's format before 1.6: pickles, then storages."""
    storages: dict[str, Storage] = {}
    data = file.bytes(0, min(file.size, MOST_PICKLE))
    machine, source = _machine(file, BUILDERS, storages, data), BytesIO(data)
    if machine.run(source) != _MAGIC or machine.run(source) != _PROTOCOL:
        raise WeightsError(
            f"{file.path} is a bare pickle, not a file of torch.save; load it where it was "
            "made and save its tensors with torch.save or safetensors"
        )
    about, content, keys = machine.run(source), machine.run(source), machine.run(source)
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise _other_byteorder(file)
    places = _legacy_places(file, source.tell(), keys, storages)
    return {name: stored(file, name, v, places) for name, v in flatten(file, content, {}).items()}


def _run(file: RawFile, member: Member, builders: Builders) -> Any:
    if member.deflated:
        raise _packed(file)
    data = _small(file, member, MOST_PICKLE)
    return _machine(file, builders, {}, data).run(BytesIO(data))


def _small(file: RawFile, member: Member, most: int) -> bytes:
    """Give the bytes of a member that describes tensors; they are few."""
    if member.size > most:
        raise WeightsError(
            f"{file.path} describes its tensors in {member.size:,} bytes, and {most:,} are read at "
            "most; save the state dict alone"
        )
    return unpack(file, member)


def _machine(
    file: RawFile, builders: Builders, storages: dict[str, Storage], data: bytes
) -> Machine:
    """Give the machine for a pickle that starts with `data`; it notes the storages it meets."""

    def find(module: str, name: str) -> Any:
        if (module, name) in builders:
            return builders[module, name]
        if builders is SCRIPT_BUILDERS and f"{module}.".startswith("__torch__."):
            return partial(Attributes, module, name)
        # Every module has this attribute, and no state dict.
        refuse(file, module, name, whole_module=b"_forward_pre_hooks" in data)

    def load(identity: Any) -> Storage:
        word, dtype, key, _, _, *view = few(identity)
        if word != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise TypeError("what should be a storage is none")
        storage = Storage(as_text(key), dtype)
        return storages.setdefault(storage.key, storage)

    return Machine(file, find, load)


def _zip_places(file: RawFile, members: dict[str, Member], root: str) -> Places:
    order = members.get(f"{root}byteorder")
    if order and _small(file, order, 16) != b"little":
        raise _other_byteorder(file)
    storages = {n: m for n, m in members.items() if n.startswith(f"{root}data/")}
    if any(member.deflated for member in storages.values()):
        raise _packed(file)
    return {n.removeprefix(f"{root}data/"): (m.start, m.size) for n, m in storages.items()}


def _legacy_places(file: RawFile, start: int, keys: Any, storages: Mapping[str, Storage]) -> Places:
    """Walk over the storages from `start` on; each one says its count first."""
    places = {}
    with file.open() as source:
        for key in keys if isinstance(keys, list) else []:
            source.seek(start)
            storage, head = storages.get(key) if type(key) is str else None, source.read(8)
            if storage is None or head is None or len(head) < 8:
                raise WeightsError(f"{file.path} is cut: numbers are missing at its end; {AGAIN}")
            nbytes = struct.unpack("<q", head)[0] * storage.dtype.itemsize
            start += len(head)
            if not 0 <= nbytes <= file.size - start:
                missing = start + nbytes - file.size
                raise WeightsError(f"{file.path} is cut: {missing:,} bytes are missing; {AGAIN}")
            places[storage.key] = (start, nbytes)
            start += nbytes
    return places


_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.M
)


def _registered(file: RawFile, members: dict[str, Member], code: str) -> dict[str, frozenset[str]]:
    """Give the parameters and buffers of each class, which the code of an archive lists."""
    found, left = {}, _CODE_BYTES
    for path, member in members.items():
        if path.startswith(code) and path.endswith(".py"):
            module = path.removeprefix(code).removesuffix(".py").replace("/", ".")
            text = _small(file, member, left).decode("utf-8", "replace")
            left -= member.size
            for kind, parameters, buffers in _CLASS.findall(text):
                names = re.findall(r'"([^"]*)"', f"{parameters} {buffers}")
                found[f"{module}.{kind}"] = frozenset(names)
    return found


def _packed(file: RawFile) -> WeightsError:
    return WeightsError(
        f"{file.path} was compressed by another tool; torch stores its tensors plain: load it with "
        "torch and save it again"
    )


def _other_byteorder(file: RawFile) -> WeightsError:
    return WeightsError(
        f"{file.path} was saved by a machine of the other byte order; save it again on this one"
    )
