"""What a file is that holds no weights, or none that are read here, told by its bytes."""

import re

from vitrail.errors import WeightsError
from vitrail.weights.formats.stored import AGAIN, RawFile, clean

WANTED = "wanted are safetensors, a torch file (.pth, .pt, .bin) or an .npz"

_UNPACK, _OTHER = "unpack it first", "name the model's weights"
_SOURCE = "take the weights that it was made from"

# Where in the file, which bytes, what that is, and what to do.
_SIGNS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x93NUMPY", "a single array (.npy)", "numpy.savez(FILE, name=array) gives it a name"),
    (0, b"\x1f\x8b", "packed by gzip", _UNPACK),
    (0, b"\xfd7zXZ\0", "packed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    (0, b"BZh", "packed by bzip2", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", "unpack it and name the weight file in it"),
    (0, b"GGUF", "a GGUF file of llama.cpp", "take the model's safetensors"),
    (0, b"\x89HDF\r\n", "an HDF5 file, as Keras writes it", "export it with numpy.savez"),
    (4, b"TFL3", "a TensorFlow Lite model", _SOURCE),
    (0, b"\x89PNG", "a PNG image", _OTHER),
    (0, b"\xff\xd8\xff", "a JPEG image", _OTHER),
    (0, b"GIF8", "a GIF image", _OTHER),
    (8, b"WEBP", "a WebP image", _OTHER),
    (0, b"%PDF", "a PDF document", _OTHER),
)

# For what has no sign of its own.
_FORMS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (
        re.compile(rb"\s*<(!doctype html|html)", re.I),
        "a web page, not weights",
        "the download needs a log-in or another address",
    ),
    (re.compile(rb"\s*<\?xml"), "XML, often a server's refusal", "check the address"),
    (
        re.compile(rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", re.S),
        "msgpack, as flax writes it",
        "save the parameters with safetensors.flax",
    ),
    (
        re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x3a\x42]"),
        "perhaps a model of ONNX or TensorFlow",
        _SOURCE,
    ),
)
_TABLE_END = bytes.fromhex("57fb808b247547db")  # of the index of a TensorFlow checkpoint


def foreign(file: RawFile) -> WeightsError | None:
    """Give the error that says what the file is, what was wanted and what to do, where we know."""
    what, cure = _recognize(file)
    if not what:
        return None
    wrong = "is no whole safetensors file but" if file.path.suffix == ".safetensors" else "is"
    return WeightsError(f"{file.path} {wrong} {what}; {WANTED}; {cure}")


def _recognize(file: RawFile) -> tuple[str, str]:
    if not file.size:
        return "empty", AGAIN
    head = file.bytes(0, min(file.size, 512)).removeprefix(b"\xef\xbb\xbf")
    for start, mark, what, cure in _SIGNS:
        if head[start : start + len(mark)] == mark:
            return what, cure
    for form, what, cure in _FORMS:
        if form.match(head):
            return what, cure
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d{1,15})$", head, re.M)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"a git LFS pointer to a file{of}", "git lfs pull fetches it"
    if file.bytes(max(file.size - 8, 0), min(file.size, 8)) == _TABLE_END:
        return "the index of a TensorFlow checkpoint", "export its variables with numpy.savez"
    return _text(head)


def _text(head: bytes) -> tuple[str, str]:
    text = head[:200].decode("utf-8", "ignore")
    whole = len(text.encode()) > min(len(head), 200) - 4  # the cut may split a letter
    if not whole or any(not letter.isprintable() for letter in text if not letter.isspace()):
        return "", ""
    if text.lstrip()[:1] in ("{", "["):
        return f"JSON: {clean(text[:60])}", "name the weights, or their *.index.json"
    return f"text: {clean(text[:60])}", "check what was downloaded"
