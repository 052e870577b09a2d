"""Pickles, read without running them.

A pickle is a list of instructions for a small stack machine. Python's own machine imports and calls
whatever they name; this one knows plain values and the functions that it was given, refuses every
other name, and takes no more memory than the pickle has bytes, give or take a factor.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from io import BufferedReader, BytesIO
from typing import Any, NoReturn

from vitrail.errors import UnsafeError, VitrailError, WeightsError
from vitrail.weights.formats.stored import AGAIN, RawFile

# How pickles start: with their protocol, or, before protocol 2, in a few ways.
PICKLE = re.compile(rb"\x80[\1-\5]|\(?c[\w.]+\n\w+\n[pq(]|\([dl]p\d+\n|[}\]]q\0")


class LeftOut:
    """A value that is no tensor and that nobody asks for."""


class Attributes:
    """An object of a class that is not here: its class's name, and what it holds."""

    def __init__(self, kind: str) -> None:
        self.kind, self.values = kind, None


def left_out(*_: Any) -> LeftOut:
    """Stand for anything whose result nobody asks for."""
    return LeftOut()


def empty(*_: Any) -> dict[Any, Any]:
    """Stand for the classes of dict; their items come after."""
    return {}


# What published checkpoints carry beside tensors: arguments, paths, numbers of numpy.
# None of it is looked up, let alone called: each of these becomes a `LeftOut`.
_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
_HARMLESS = {
    "argparse": "Namespace",
    "builtins": "bytearray bytes complex dict float frozenset int list set slice",
    "_codecs": "encode",
    "collections": "Counter deque",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
}
PLAIN: Mapping[tuple[str, str], Any] = {
    **{(module, name): left_out for module, names in _HARMLESS.items() for name in names.split()},
    ("collections", "OrderedDict"): empty,
    ("collections", "defaultdict"): empty,
}

_REAL_NAMES = {"posix": "os", "nt": "os", "__builtin__": "builtins"}

_NEW: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,  # a set would ask its items for their hashes
    "EMPTY_DICT": dict,
}
_CONSTANTS = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_MOST_ARGUMENTS = 64  # each call copies them


class Machine:
    """The stack machine: `find` says what a name stands for, `load` what a storage's identity."""

    def __init__(
        self, file: RawFile, find: Callable[[str, str], Any], load: Callable[[Any], Any]
    ) -> None:
        self.file, self.find, self.load = file, find, load

    def run(self, source: BytesIO | BufferedReader) -> Any:
        """Give what one pickle describes; `source` stands behind it afterwards."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            for opcode, value, _ in pickletools.genops(source):
                self.step(opcode.name, value)
            return self.stack.pop()
        except VitrailError:
            raise
        # Made-up instructions go wrong in any way there is; whichever it is, they are at fault.
        except Exception as error:
            raise WeightsError(
                f"{self.file.path} holds a broken pickle ({type(error).__name__}: "
                f"{clean(str(error))}), not one that torch.save wrote; {AGAIN}"
            ) from error

    def step(self, name: str, value: Any) -> None:
        """Carry out one instruction."""
        stack = self.stack
        match name:
            case _ if name in _CONSTANTS:
                stack.append(value)
            case _ if name in _NEW:
                stack.append(_NEW[name]())
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[value])
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "LIST" | "FROZENSET":
                items = self.since_mark()
                self.stack.append(items)
            case "DICT":
                items = self.since_mark()
                self.stack.append({})
                self.set_items(items)
            case "SETITEM":
                self.set_items([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                self.set_items(self.since_mark())
            case "APPEND":
                self.append_items([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.append_items(self.since_mark())
            case "GLOBAL":
                stack.append(self.named(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self.named(stack.pop(-2), stack.pop()))
            case "INST":
                function = self.named(*value.split(" ", 1))
                self.call(function, tuple(self.since_mark()))
            case "REDUCE" | "NEWOBJ":
                self.call(stack.pop(-2), stack.pop())
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Attributes):
                    stack[-1].values = state
            case "BINPERSID":
                stack.append(self.load(stack.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"no weights need {name}")

    def since_mark(self) -> list[Any]:
        """Take what came since the last mark off the stack, and the mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top."""
        target = self.stack[-1]
        if isinstance(target, LeftOut):
            return
        if not isinstance(target, dict):
            raise TypeError(f"a {type(target).__name__} takes no keys")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only plain keys: hashing tuples nested by the million ends the process.
            plain = isinstance(key, str | int | float | bytes | None)
            target[key if plain else f"{type(key).__name__} {len(target)}"] = value

    def append_items(self, items: list[Any]) -> None:
        """Put values at the end of the list on top."""
        target = self.stack[-1]
        if isinstance(target, LeftOut):
            return
        if not isinstance(target, list):
            raise TypeError(f"a {type(target).__name__} takes no values")
        target.extend(items)

    def named(self, module: object, name: object) -> Any:
        """Give what a name stands for here; `find` refuses what it does not know."""
        return self.find(_REAL_NAMES.get(str(module), str(module)), str(name))

    def call(self, function: Any, arguments: Any) -> None:
        """Put the result of one of the functions that were given on the stack."""
        if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
            raise TypeError("a call without a short list of arguments")
        self.stack.append(function(*arguments))


def refuse(file: RawFile, module: str, name: str, whole_module: bool) -> NoReturn:
    """Raise the `UnsafeError` that names what a pickle wanted."""
    wanted = clean(f"{module}.{name}")
    if module == "os":
        wanted += f" ({clean(f'posix.{name}')} in the file)"  # as Linux and macOS call it
    cure = "weights are tensors and plain values: use this file nowhere, ask for safetensors"
    if whole_module:
        cure = "it is a whole module: where you trust it, save its state_dict() and load that"
    raise UnsafeError(f"{file.path} wants to run {wanted}, nothing was run; {cure}")


def clean(text: str) -> str:
    """Give text of a file so that a terminal can show it."""
    return text[:80].encode("unicode_escape").decode()
