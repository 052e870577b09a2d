"""Weight files of every kind: read like their own library does, and refused when they lie."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import resource
import signal
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vitrail.errors import UnsafeError, WeightsError
from vitrail.weights import files
from vitrail.weights.files import open_weights

BASE = torch.arange(24.0).reshape(4, 6)
PLAIN = {
    "blocks.0.weight": torch.randn(3, 5),
    "half": torch.randn(3).half(),
    "brain": torch.randn(2, 3).bfloat16(),
    "eighth": torch.randn(5).to(torch.float8_e4m3fn),
    "double": torch.randn(2).double(),
    "count": torch.tensor(3),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "mask": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 4),
}
# What only a pickle can hold: views, parameters, two names for one memory.
VIEWS = {
    **PLAIN,
    "turned": BASE.t(),
    "rows": BASE[1:3],
    "column": BASE[:, 2],
    "expanded": torch.ones(1).expand(5, 7),
    "parameter": nn.Parameter(torch.randn(2)),
    "shorts": torch.arange(5).to(torch.uint16),
    "base": BASE,
}


def read(path: Path) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in open_weights(path).tensors.items()}


def check_same(path: Path, kind: str, wanted: Mapping[str, Tensor]) -> None:
    """Check shape and dtype before reading, and the values and the memory after it."""
    opened = open_weights(path)

    assert opened.kind == kind and opened.tensors.keys() == wanted.keys()
    for name, tensor in opened.tensors.items():
        values = tensor.read()
        assert (tensor.shape, tensor.dtype) == (wanted[name].shape, wanted[name].dtype), name
        torch.testing.assert_close(values, wanted[name].detach(), rtol=0, atol=0)
        assert values.dtype == tensor.dtype and values.is_contiguous(), name
        assert values.data_ptr() % 64 == 0, name


def refused(path: Path, kind: type[Exception] = WeightsError) -> str:
    """Give the message of the error that opening and reading the file raises."""
    with pytest.raises(kind) as caught:
        read(path)

    assert str(path) in str(caught.value) and type(caught.value) is kind
    return str(caught.value)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the process grow by 256 MB at most."""
    if sys.platform != "linux":
        pytest.skip("only Linux counts the memory of a process against its limit")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    room = pages * resource.getpagesize() + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextmanager
def little_time() -> Iterator[None]:
    """Let the process compute for 20 seconds at most; each file below takes less than two."""

    def stop(*_: object) -> None:
        pytest.fail("reading takes too long")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 20)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Calls:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def replaced(path: Path, ending: str, data: bytes) -> Path:
    """Give the zip file with other bytes in the member whose name has that ending."""
    changed = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            new.writestr(info, data if info.filename.endswith(ending) else old.read(info))
    return changed


def torch_pickle(path: Path, data: bytes) -> Path:
    """Give a file as torch.save writes it, but with this pickle."""
    torch.save({"a": torch.ones(2)}, path)
    return replaced(path, "data.pkl", data)


# ---- each kind


def test_safetensors_are_read_as_their_library_reads_them(tmp_path: Path) -> None:
    safetensors.torch.save_file(PLAIN, tmp_path / "a.safetensors", {"format": "pt"})

    check_same(tmp_path / "a.safetensors", "safetensors", PLAIN)
    assert open_weights(tmp_path / "a.safetensors").metadata == {"format": "pt"}
    assert files.read_tensors(tmp_path / "a.safetensors").keys() == PLAIN.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    torch.save(VIEWS, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)

    check_same(tmp_path / "a.pth", "torch", VIEWS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_protocol_of_pickles_is_read(tmp_path: Path, protocol: int) -> None:
    checkpoint = {"model": VIEWS, "bytes": b"x", "set": {1}, "frozen": frozenset("ab")}
    torch.save(checkpoint, tmp_path / "a.pth", pickle_protocol=protocol)

    assert open_weights(tmp_path / "a.pth").tensors.keys() == {f"model.{name}" for name in VIEWS}


@pytest.mark.parametrize("zipped", [True, False])
def test_of_a_checkpoint_the_tensors_are_kept(tmp_path: Path, zipped: bool) -> None:
    checkpoint = {
        "model": {"cls_token": torch.ones(2), "blocks": [torch.zeros(1), None]},
        "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("runs")),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]},
        "ordered": collections.OrderedDict(bias=torch.ones(1)),
        "default": collections.defaultdict(list, weight=torch.ones(1)),
        "counter": collections.Counter("aab"),
        "best": np.float64(81.5),
        "array": np.arange(3),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "epoch": 300,
        (1, 2): "key",
    }
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)

    tensors = open_weights(tmp_path / "a.pth").tensors

    assert list(tensors) == [
        "model.cls_token", "model.blocks.0", "optimizer.state.0.step", "ordered.bias",
        "default.weight",
    ]  # fmt: skip


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).half())
        self.register_buffer("steps", torch.tensor(7))
        self.remembered = torch.zeros(2)  # a tensor, but no part of the state dict

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.float().t() + self.remembered[0]


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.layers = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))
        self.turned = nn.Parameter(torch.randn(5, 3).t())
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.inner(x)) @ self.turned


# torch calls TorchScript deprecated; the files are there to stay.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_has_the_names_of_its_state_dict(tmp_path: Path, how: str) -> None:
    module = Outer()
    scripted = torch.jit.script(module) if how == "script" else torch.jit.trace(module, BASE[:, :4])
    torch.jit.save(scripted, tmp_path / "a.pt")

    check_same(tmp_path / "a.pt", "torchscript", torch.jit.load(tmp_path / "a.pt").state_dict())


ARRAYS = {
    "Transformer/encoderblock_0/kernel": np.random.default_rng(0).random((3, 4), np.float32),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "swapped": np.arange(5, dtype=">i4"),
    "scalar": np.asarray(np.float32(3.5)),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
    "brain": torch.tensor([[1.5, -2.0]]).bfloat16().view(torch.int16).numpy().view("V2"),
}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed, files.write_npz])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, write: Callable[..., Any]) -> None:
    if write is files.write_npz:
        write(tmp_path / "a.npz", ARRAYS)
    else:
        write(tmp_path / "a.npz", **ARRAYS)

    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in ARRAYS.items()}
    brain = torch.tensor([[1.5, -2.0]]).bfloat16()
    plain = {name: torch.tensor(array) for name, array in native.items() if name != "brain"}
    check_same(tmp_path / "a.npz", "npz", {**plain, "brain": brain})
    assert np.load(tmp_path / "a.npz")["brain"].tobytes() == ARRAYS["brain"].tobytes()


def test_a_file_in_parts_is_one(tmp_path: Path) -> None:
    parts = {"1.safetensors": {"a": torch.ones(2)}, "2.safetensors": {"b": torch.zeros(3)}}
    for part, tensors in parts.items():
        safetensors.torch.save_file(tensors, tmp_path / part)
    index = {name: part for part, tensors in parts.items() for name in tensors}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": index}))

    check_same(path, "safetensors", {"a": torch.ones(2), "b": torch.zeros(3)})


def test_the_name_of_a_file_does_not_tell_what_it_is(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.npz")

    assert open_weights(tmp_path / "a.safetensors").kind == "torch"
    assert open_weights(tmp_path / "a.npz").kind == "safetensors"
    with pytest.raises(WeightsError, match="but a torch file"):
        files.read_tensors(tmp_path / "a.safetensors")


# ---- writing


def test_a_written_state_dict_is_what_torch_reads_and_no_longer(tmp_path: Path) -> None:
    digest = files.write_torch(tmp_path / "a.pth", {"row": torch.ones(1000, 100)[0]})

    assert torch.equal(torch.load(tmp_path / "a.pth", weights_only=True)["row"], torch.ones(100))
    assert digest == files.sha256(tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 4000


def test_written_arrays_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = files.write_npz(tmp_path / "a.npz", ARRAYS)
    again = files.write_npz(tmp_path / "b.npz", ARRAYS)

    assert first == again == files.sha256(tmp_path / "a.npz")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_written_safetensors_are_the_bytes_that_their_library_writes(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    numbers = torch.arange(24).reshape(2, 3, 4)
    dtypes = (torch.bool, torch.uint8, torch.int64, torch.float64, torch.bfloat16, torch.float16)
    tensors = {f"é{i}": numbers.to(dtype).clone() for i, dtype in enumerate(dtypes)}
    tensors |= {"b": torch.randn(3), "a": torch.zeros(()), "none": torch.zeros(0, 5)}

    digest = files.write_tensors(tmp_path / "a.safetensors", tensors, metadata)

    assert (tmp_path / "a.safetensors").read_bytes() == safetensors.torch.save(tensors, metadata)
    assert digest == files.sha256(tmp_path / "a.safetensors")


def test_metadata_stands_in_written_safetensors(tmp_path: Path) -> None:
    digest = files.write_tensors(tmp_path / "a.safetensors", PLAIN, {"format": "pt"})

    assert open_weights(tmp_path / "a.safetensors").metadata == {"format": "pt"}
    assert digest == files.sha256(tmp_path / "a.safetensors")


# ---- files that change


def write_all(folder: Path) -> list[Path]:
    """Write one file of each kind and give their paths."""
    tensors = {"a": torch.ones(1000), "b": torch.full((1000,), 2.0)}
    safetensors.torch.save_file(tensors, folder / "a.safetensors")
    torch.save(tensors, folder / "a.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(folder / "a.npz", a=tensors["a"].numpy(), b=tensors["b"].numpy())
    return sorted(folder.iterdir())


def test_a_file_that_is_cut_after_reading_changes_nothing(tmp_path: Path) -> None:
    for path in write_all(tmp_path):
        tensors = read(path)

        os.truncate(path, 0)

        assert tensors["a"].sum() + tensors["b"].sum() == 3000, path


@pytest.mark.parametrize("size", [0, 5000])
def test_a_file_that_is_cut_before_reading_is_told(tmp_path: Path, size: int) -> None:
    for path in write_all(tmp_path):
        opened = open_weights(path)

        os.truncate(path, size)

        with pytest.raises(WeightsError, match="has changed since it was opened"):
            opened.tensors["b"].read()


def test_a_cut_file_is_told_wherever_it_is_cut(tmp_path: Path) -> None:
    for path in write_all(tmp_path):
        whole = path.read_bytes()
        for size in (1, 7, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            refused(path)


def test_a_changed_bit_in_an_array_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)

    assert "not have the numbers that were saved" in refused(tmp_path / "a.npz")


# ---- files that want to run something


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Give a path that must not be there when the test ends."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_a_command_is_refused(
    tmp_path: Path, marker: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    evil = {"model": {"a": torch.ones(2), "b": Calls(os.system, f"touch {marker}")}}
    torch.save(evil, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)

    message = refused(tmp_path / "a.pth", UnsafeError)

    assert "wants to run os.system" in message and "nothing was run" in message
    assert UnsafeError.exit_code == 3


@pytest.mark.parametrize(
    ("function", "name"),
    [(eval, "builtins.eval"), (getattr, "builtins.getattr"), (torch.load, "torch.serialization")],
)
def test_whatever_a_pickle_wants_to_call_is_named(
    tmp_path: Path, marker: Path, function: Callable[..., Any], name: str
) -> None:
    call = Calls(function, f"__import__('pathlib').Path('{marker}').touch()")
    torch.save({"a": [{"b": collections.OrderedDict(c=call)}]}, tmp_path / "a.pth")

    assert name in refused(tmp_path / "a.pth", UnsafeError)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: {"model": call}])
def test_a_bare_pickle_of_any_protocol_runs_nothing(
    tmp_path: Path, marker: Path, protocol: int, wrap: Callable[[Any], Any]
) -> None:
    evil = wrap(Calls(os.system, f"touch {marker}"))
    (tmp_path / "a.bin").write_bytes(pickle.dumps(evil, protocol))

    assert "os.system" in refused(tmp_path / "a.bin", UnsafeError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_that_runs_a_command_is_refused(tmp_path: Path, marker: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    evil = pickle.dumps(Calls(os.system, f"touch {marker}"), 2)

    path = replaced(tmp_path / "a.pt", "/data.pkl", evil)

    assert "os.system" in refused(path, UnsafeError)


def test_a_pickle_in_a_tar_is_not_even_read(tmp_path: Path, marker: Path) -> None:
    evil = pickle.dumps(Calls(os.system, f"touch {marker}"), 2)
    with tarfile.open(tmp_path / "a.pth.tar", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            tar.addfile(info, io.BytesIO(evil))

    assert "a tar archive" in refused(tmp_path / "a.pth.tar")


def test_an_array_of_objects_is_refused(tmp_path: Path, marker: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([Calls(os.system, f"touch {marker}")], dtype=object))

    assert "array of Python objects" in refused(tmp_path / "a.npz", UnsafeError)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path, zipped: bool) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)

    message = refused(tmp_path / "a.pth", UnsafeError)

    assert "torch.nn.modules.linear.Linear" in message and "state_dict()" in message


# ---- files that lie


def header(text: str | bytes, data: int = 0) -> bytes:
    """Give a safetensors file with this header and so many bytes of data."""
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + bytes(data)


def one(shape: object, offsets: object, dtype: str = "F32") -> str:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


def two(name: str, offsets: object) -> str:
    """Give the header of "a", the first four bytes, and of four more."""
    second = {"dtype": "U8", "shape": [4], "data_offsets": offsets}
    return one([4], [0, 4], "U8")[:-1] + f', "{name}": {json.dumps(second)}}}'


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        (struct.pack("<Q", 2**62), "its header has 4,611,686,018,427,387,904"),
        (struct.pack("<Q", 2**62) + b"{}" + bytes(50), "its header has 4,611,686,018,427,387,904"),
        (header(one([2**40, 2**40], [0, 4]), 4), "takes 4,835,703,278,458,516,698,824,704 bytes"),
        (header(one([1] * 100_000, [0, 4]), 4), "shape"),
        (header(one([-1, -1], [0, 4]), 4), "shape [-1, -1]"),
        (header(one([1], [-4, 0]), 4), "offsets -4, 0"),
        (header(one([1.0], [0, 4]), 4), "shape [1.0]"),
        (header(one([10**4000, 10**4000], [0, 4]), 4), "shape [1000000000"),
        (header(one([2**63, 0], [0, 4]), 4), "shape [9223372036854775808, 0]"),
        (header(one([True], [0, 4]), 4), "shape [True]"),
        (header(one(4, [0, 4]), 4), "header"),
        (header(one([1], [0, 4, 8]), 4), "header"),
        (header(one([1], [4, 0]), 4), "takes 4 bytes, not -4"),
        (header(one([1], [0, 4], "F31"), 4), "the dtype F31"),
        (header(one([1], [0, 4])), "4 bytes are missing"),
        (header(one([1], [0, 4]), 5), "1 bytes too many"),
        (header(one([1], [4, 8]), 8), "starts at 4, not at 0"),
        (header(two("b", [2, 6]), 6), "b starts at 2, not at 4"),
        (header(two("b", [5, 9]), 9), "b starts at 5, not at 4"),
        (header(two("a", [4, 8]), 8), "says something twice"),
        (header('{"a":[]}'), "no dtype, shape or data_offsets"),
        (header('{"__metadata__":{"a":1}}'), "__metadata__"),
        (header('{"__metadata__":[1]}'), "header"),
        (header(b'{"\xff":1}'), "header"),
        (header('{"a":' + "[" * 100_000), "header"),
        (header('{"a":' + "9" * 10_000 + "}"), "header"),
    ],
)
def test_a_safetensors_header_that_lies_is_told(
    tmp_path: Path, content: bytes, telling: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    with little_memory():
        message = refused(path)

    assert telling in message and "no whole safetensors file" in message


def test_the_limit_of_the_tests_below_is_one() -> None:
    with little_memory(), pytest.raises(MemoryError):
        bytearray(2**29)


def expanded(path: Path) -> Path:
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    return path


def alike(path: Path) -> Path:
    """Give a file in which 200 names show the same megabyte."""
    megabyte = torch.zeros(2**18)
    torch.save({str(i): megabyte for i in range(200)}, path)
    return path


def nested(path: Path) -> Path:
    """Give a file with a list of two lists of two lists ..., 2 ** 100 in all."""
    value: list[Any] = []
    for _ in range(100):
        value = [value, value]
    torch.save({"a": value}, path)
    return path


def packed(path: Path) -> Path:
    np.savez_compressed(path, a=np.zeros(100_000_000, np.uint8))
    return path


def longer_than_it_says(path: Path) -> Path:
    """Give an archive whose member unpacks to more than its header and the directory say."""
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    said = len(buffer.getvalue())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", buffer.getvalue() + bytes(2**20))
    size = struct.pack("<L", said + 2**20)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", said)))
    return path


def shorter_than_it_says(path: Path) -> Path:
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        data, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", data.getvalue() + bytes(8))
    return path


def sizeless(path: Path) -> Path:
    """Give a file with a tensor of no numbers and more room than there are addresses."""
    path.write_bytes(header(one([0, 2**62], [0, 0])))
    return path


@pytest.mark.parametrize(
    ("make", "telling"),
    [
        (expanded, "made to fill the memory"),
        (alike, "made to fill the memory"),
        (nested, "as no weights do"),
        (packed, "made to fill the memory"),
        (longer_than_it_says, "something else than was packed"),
        (shorter_than_it_says, "has 136 bytes and its header says 4,398,046,511,232"),
        (sizeless, "has the shape (0, 4611686018427387904)"),
    ],
)  # fmt: skip
def test_a_small_file_cannot_fill_the_memory(
    tmp_path: Path, make: Callable[[Path], Path], telling: str
) -> None:
    path = make(tmp_path / "a.npz")

    with little_memory():
        message = refused(path)

    assert telling in message


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Calls(bytearray, 2**40), 2),  # torch.load makes room for it
        b"\x80\x02}r\xff\xff\xff\x7f.",  # Python's own unpickler makes room for 2 ** 31 notes
    ],
)
def test_what_a_pickle_asks_for_beside_tensors_takes_no_memory(tmp_path: Path, data: bytes) -> None:
    path = torch_pickle(tmp_path / "a.pth", data)

    with little_memory():
        tensors = read(path)

    assert tensors == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GB
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes without an end
        b"\x80\x02t.",
        b"\x80\x02h\x05.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
        b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.",
        b"\x80\x02}" + b"(" + b")\x85" * 10_000 + b"K\x01u.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89NtR.",
    ],
)
def test_a_broken_pickle_is_told(tmp_path: Path, data: bytes) -> None:
    path = torch_pickle(tmp_path / "a.pth", data)

    with little_memory():
        assert "broken pickle" in refused(path)


# Two of the tuple before, a hundred times: its text would have 2 ** 100 signs.
DOUBLED = b")" + b"q\0h\0\x86" * 100
DEEP = b")" + b"\x85" * 100_000
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000NK\2t"  # its identity
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
LONG = b"\x8b\0\x10\0\0" + b"\1" * 4096  # a number of 9,864 digits


def long1(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(data)]) + data


def rebuilt(offset: bytes = b"K\0", shape: bytes = b"K\2\x85", stride: bytes = b"K\1\x85") -> bytes:
    """Give the instructions for a tensor."""
    return REBUILD + b"(" + STORAGE + b"Q" + offset + shape + stride + b"\x89NtR"


@pytest.mark.parametrize(
    ("data", "telling"),
    [
        (b"X\5\0\0\0torch" + DOUBLED + b"\x93", "type tuple is no short text"),
        (DOUBLED + b"X\4\0\0\0Size\x93", "type tuple is no short text"),
        (DEEP + b"X\4\0\0\0Size\x93", "type tuple is no short text"),
        (STORAGE.replace(b"X\1\0\0\x000", DOUBLED) + b"Q", "type tuple is no short text"),
        (STORAGE.replace(b"X\7\0\0\0storage", DOUBLED) + b"Q", "should be a storage"),
        (b"]q\0(" + STORAGE[1:-1] + b"N" * 1000 + b"eQ", "short list of arguments"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nN]NtR", "short list of"),
        (rebuilt(shape=DOUBLED, stride=DOUBLED), "that none has"),
        (rebuilt(shape=DOUBLED + b"\x85"), "that none has"),
        (rebuilt(offset=LONG), "that none has"),
        (rebuilt(stride=LONG + b"\x85"), "that none has"),
        (b"}(" + LONG + b"Nu", "type int is no short text or small number"),
        (b"}(X\0\4\0\0" + b"x" * 1024 + b"Nu", "type str is no short text"),
        (b"}(K\1NX\1\0\0\x001Nu", "two values are called 1"),
        (b"h" + b"\0", "KeyError"),
        (b"g" + b"9" * 5000 + b"\n", "ValueError"),
        # Python gives all of these numbers one hash.
        (b"}(" + b"".join(long1(k * (2**61 - 1)) + b"N" for k in range(5, 20_005)) + b"u",
         "type int is no short text or small number"),
    ],
)  # fmt: skip
def test_nothing_in_a_pickle_is_shown_or_hashed_that_may_have_no_end(
    tmp_path: Path, data: bytes, telling: str
) -> None:
    path = torch_pickle(tmp_path / "a.pth", b"\x80\2" + data + b".")

    with little_memory(), little_time():
        message = refused(path)

    assert "broken pickle" in message and telling in message and len(message) < 1000


def test_a_key_that_is_no_text_is_called_by_its_type(tmp_path: Path) -> None:
    tensor = rebuilt()
    data = b"\x80\2}(" + DOUBLED + tensor + DEEP + tensor + b"K\7" + tensor + b"u."
    path = torch_pickle(tmp_path / "a.pth", data.replace(b"X\1\0\0\x000", b"K\0"))

    with little_memory(), little_time():
        tensors = read(path)

    assert list(tensors) == ["tuple 0", "tuple 1", "7"]


def test_notes_of_a_pickle_with_numbers_of_one_hash_are_read_at_once(tmp_path: Path) -> None:
    notes = b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(200_000))
    path = torch_pickle(tmp_path / "a.pth", b"\x80\2}" + notes + b".")

    with little_time():
        assert read(path) == {}


def legacy(path: Path, content: bytes, keys: bytes) -> Path:
    """Give a file as torch.save wrote it before 1.6, with these pickles."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + content + keys)
    return path


@pytest.mark.parametrize("key", [DOUBLED, DEEP, LONG])
def test_an_old_file_with_a_key_that_has_no_end_is_told(tmp_path: Path, key: bytes) -> None:
    path = legacy(tmp_path / "a.pth", b"\x80\2}.", b"\x80\2]" + key + b"a." + bytes(99))

    with little_memory(), little_time():
        assert "numbers are missing" in refused(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_object_that_holds_itself_is_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    itself = b"\x80\2c__torch__\nA\n)\x81q\0h\0b."
    chain = b"\x80\2c__torch__\nA\nq\0)\x81" + b"q\1h\0)\x81h\1b" * 5000 + b"."
    inside = b"\x80\2c__torch__\nA\n)\x81q\0}X\1\0\0\0ah\0sb."

    assert read(replaced(tmp_path / "a.pt", "/data.pkl", itself)) == {}
    assert read(replaced(tmp_path / "a.pt", "/data.pkl", chain)) == {}
    assert "as no weights do" in refused(replaced(tmp_path / "a.pt", "/data.pkl", inside))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_scripted_object_does_not_keep_is_walked_over_only_so_often(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        linear = b"c" + archive.read("a/data.pkl").split(b"c", 1)[1].split(b")", 1)[0] + b")\x81"
    state = b"}(" + b"".join(b"J" + struct.pack("<I", k) + b"N" for k in range(100_000)) + b"u"
    data = b"\x80\2](" + linear + state + b"bq\0" + b"h\0" * 100_000 + b"e."
    path = replaced(tmp_path / "a.pt", "/data.pkl", data)

    with little_time():
        assert "as no weights do" in refused(path)


@pytest.mark.parametrize("dtype", ["qint8", "quint4x2", "int4", "uint1"])
def test_numbers_that_torch_cannot_copy_are_named(tmp_path: Path, dtype: str) -> None:
    name = b"ctorch\n" + dtype.encode() + b"\n"
    turned = b"}X\1\0\0\0a" + rebuilt(b"K\0", b"K\1K\2\x86", b"K\1K\1\x86") + b"s"

    path = torch_pickle(
        tmp_path / "a.pth", b"\x80\2" + turned.replace(b"ctorch\nFloatStorage\n", name) + b"."
    )

    assert f"a is a torch.{dtype} tensor" in refused(path)


@pytest.mark.parametrize(
    ("member", "telling"),
    [("/data.pkl", "compressed by another tool"), ("/byteorder", "in 41,943,040 bytes")],
)
def test_what_describes_a_torch_file_is_short_and_not_packed(
    tmp_path: Path, member: str, telling: str
) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    large = replaced(tmp_path / "a.pth", member, bytes(40 * 2**20))
    with (
        zipfile.ZipFile(large) as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), int(info.filename.endswith(member)) * 8)

    with little_memory():
        assert "in 41,943,040 bytes" in refused(large)
        assert telling in refused(tmp_path / "b.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_of_torchscript_is_short(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")

    path = replaced(tmp_path / "a.pt", ".py", b"\n" * 20 * 2**20)

    assert "in 20,971,520 bytes" in refused(path)


def test_the_pickles_of_an_old_file_are_short(tmp_path: Path) -> None:
    text = b"\x80\2X" + struct.pack("<I", 2**25) + bytes(2**25) + b"."

    path = legacy(tmp_path / "a.pth", text, b"\x80\2].")

    assert "broken pickle at 33,554,432 bytes" in refused(path)


def test_a_pickle_of_countless_instructions_is_told(tmp_path: Path) -> None:
    path = torch_pickle(tmp_path / "a.pth", b"\x80\2" + b"]q\0" * 2**19 + b".")

    with little_memory():
        assert "more than 1,000,000 instructions" in refused(path)


def test_a_little_file_cannot_name_its_tensors_countless_times(tmp_path: Path) -> None:
    value: Any = torch.zeros(0)
    for _ in range(20):
        value = [value, value]
    torch.save({"a" * 500: value}, tmp_path / "a.pth")

    with little_memory():
        assert "as no weights do" in refused(tmp_path / "a.pth")


def test_a_tensor_beyond_its_storage_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        data = archive.read("a/data.pkl")

    path = torch_pickle(tmp_path / "b.pth", data.replace(b"K\x02\x85", b"K\x63\x85"))

    assert "needs 396 bytes of its storage, which has 8" in refused(path)


@pytest.mark.parametrize(
    ("make", "telling"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(2, device="meta"), "meta"),
        (lambda: torch.ops.aten._neg_view(torch.ones(2)), "negated"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_not_plain_is_named(
    tmp_path: Path, make: Callable[[], Tensor], telling: str
) -> None:
    torch.save({"model": {"odd": make()}}, tmp_path / "a.pth")

    message = refused(tmp_path / "a.pth")

    assert "model.odd" in message and telling in message


def test_two_tensors_of_one_name_are_told(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "a.pth")

    assert "two tensors named a.b" in refused(tmp_path / "a.pth")


def test_a_torch_file_that_was_packed_by_another_tool_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(9999)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))

    assert "compressed by another tool" in refused(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("array", "telling"),
    [
        (np.array(["a text"]), "array of <U6"),
        (np.zeros(2, [("a", "i1"), ("b", "i1")]), "array of ["),
        (np.zeros(2, np.complex64), "array of complex64"),
    ],
)
def test_an_array_that_torch_has_no_kind_for_is_named(
    tmp_path: Path, array: np.ndarray, telling: str
) -> None:
    np.savez(tmp_path / "a.npz", odd=array)

    message = refused(tmp_path / "a.npz")

    assert "odd is an " + telling in message


@pytest.mark.parametrize(
    "shape",
    [
        f"({'9' * 4000}, {'9' * 4000})",
        f"(0x{'f' * 4500}, 0x{'f' * 4500})",
        f"({(f'{2**62}, ' * 400)})",
        "(-1,)",
        "(True,)",
    ],
)
def test_an_array_of_a_shape_that_none_has_is_told(tmp_path: Path, shape: str) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)

    assert "a has a shape that no array has" in refused(tmp_path / "a.npz")


def test_json_of_countless_bytes_is_not_read(tmp_path: Path) -> None:
    path, header = tmp_path / "config.json", tmp_path / "a.safetensors"
    path.write_bytes(b'{"a": [' + b"[]," * (6 * 2**20) + b"[]]}")
    header.write_bytes(struct.pack("<Q", path.stat().st_size) + path.read_bytes())

    with little_memory():
        assert "16,777,216 are read at most" in refused(header)
        assert "more than 16,777,216 bytes" in refused(path)
        with pytest.raises(WeightsError, match="more than 16,777,216 bytes"):
            files.read_json(path)


@pytest.mark.parametrize(
    ("weight_map", "telling"),
    [
        ({"a": "gone.safetensors"}, "gone.safetensors, which is not there"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, "holds b, which it does not"),
        ({"a": "../1.safetensors"}, "names the part ../1.safetensors"),
        ({"a": "folder/1.safetensors"}, "beside their index"),
        ({"a": ".."}, "beside their index"),
        ({"a": "x" * 2**20}, "beside their index"),
        ({"a": "/etc/passwd"}, "beside their index"),
        ({"a": "1.safetensors\0"}, "beside their index"),
        ({"a": 1}, "no index of weights"),
        ({}, "names no tensors"),
        ([], "no index of weights"),
    ],
)
def test_an_index_that_does_not_fit_is_told(
    tmp_path: Path, weight_map: object, telling: str
) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))

    assert telling in refused(path)


def test_an_index_of_itself_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))

    assert "JSON" in refused(path)


# ---- other files


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 346284714\n"


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>sign in</html>", "a web page, not weights"),
        (b"\n <html lang=en>", "log-in or another address"),
        (LFS, "of 346,284,714 bytes; wanted"),
        (LFS, "git lfs pull"),
        (zipped("notes.txt"), "a zip file with notes.txt, neither of torch nor of numpy"),
        (b"PK\5\6" + bytes(18), "a zip file with nothing"),
        (array(), "a single array (.npy)"),
        (b"\x1f\x8b\x08\0" + bytes(9), "packed by gzip"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x08\x07\x12\x07pytorch\x1a", "perhaps a model of ONNX or TensorFlow"),
        (bytes(40) + bytes.fromhex("57fb808b247547db"), "the index of a TensorFlow checkpoint"),
        (b"\x82\xa6params\x81", "msgpack, as flax writes it"),
        (b'{"a": 1, "b": 2}', "JSON with a, b, no index"),
        (b"{", "cannot be read"),
        (b"[1]", "JSON: [1]"),
        (b"404: not found\n", "text: 404: not found"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"\xff\xd8\xff\xe0", "a JPEG image"),
        (b"\1\2\3\4\5\xff\xfe", "begins with 01 02 03 04 05 ff fe"),
        (pickle.dumps({"a": 1}), "a bare pickle"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(
    tmp_path: Path, content: bytes, telling: str
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)

    assert telling in refused(path)


def test_a_path_without_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").touch()
    os.mkfifo(tmp_path / "pipe")

    assert "no weight file" in refused(tmp_path / "gone")
    assert "is a folder with a.bin" in refused(tmp_path / "model")
    assert "a pipe" in refused(tmp_path / "pipe")
    assert "cannot be read" in refused(tmp_path / ("x" * 300))
    assert "cannot be read" in refused(tmp_path / "model" / "a.bin" / "b")
