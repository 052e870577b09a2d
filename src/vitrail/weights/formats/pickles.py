"""Pickles, read without running them.

A pickle is a list of instructions for a small stack machine. Python's own machine imports and calls
whatever they name; this one knows plain values and the functions that it was given, refuses every
other name. It takes at most 200 bytes of memory for an instruction and 5 for a byte of the pickle,
and there is an end to both: a million instructions, and 32 MB.

The text or the hash of a made-up number or tuple may take longer than anybody waits: of what a
pickle made, nothing is shown or used as a key but short texts and small numbers, as text.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, NoReturn

from vitrail.errors import UnsafeError, VitrailError, WeightsError
from vitrail.weights.formats.stored import AGAIN, RawFile, clean

# How pickles start: with their protocol, or, before protocol 2, in a few ways.
PICKLE = re.compile(rb"\x80[\1-\5]|\(?c[\w.]+\n\w+\n[pq(]|\([dl]p\d+\n|[}\]]q\0")


class LeftOut:
    """A value that is no tensor and that nobody asks for."""


class Attributes:
    """An object of a class that is not here: its class's name, and what it holds."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name, self.values = module, name, None

    @property
    def kind(self) -> str:
        return f"{self.module}.{self.name}"


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

# A ViT's checkpoint with its optimizer has some 100,000 instructions in 1 MB.
MOST_PICKLE = 32 * 2**20
_MOST_STEPS = 1_000_000
_MOST_ARGUMENTS = 64  # each call copies them
_LONGEST_NAME = 512


def as_text(value: object) -> str:
    """Give a short text or a small number as text; whatever else is a `ValueError`."""
    if type(value) is str and len(value) <= _LONGEST_NAME:
        return value
    if type(value) is int and abs(value) < 2**63:
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__} is no short text or small number")


class Machine:
    """The stack machine: `find` says what a name stands for, `load` what a storage's identity."""

    def __init__(
        self, file: RawFile, find: Callable[[str, str], Any], load: Callable[[Any], Any]
    ) -> None:
        self.file, self.find, self.load = file, find, load
        self.steps = 0

    def run(self, source: BytesIO) -> Any:
        """Give what one pickle describes; `source` stands behind it afterwards."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        # By their numbers' texts: the hashes of numbers can be made to collide.
        self.memo: dict[str, Any] = {}
        try:
            for opcode, value, _ in pickletools.genops(source):
                self.steps += 1
                if self.steps > _MOST_STEPS:
                    raise WeightsError(
                        f"{self.file.path} has a pickle of more than {_MOST_STEPS:,} instructions, "
                        "which no weights need; save the state dict alone"
                    )
                self.step(opcode.name, value)
            return self.stack.pop()
        except VitrailError:
            raise
        # Made-up instructions go wrong in any way there is; whichever it is, they are at fault.
        except Exception as error:
            end = f" at {MOST_PICKLE:,} bytes" if source.tell() >= MOST_PICKLE else ""
            raise WeightsError(
                f"{self.file.path} holds a broken pickle{end} ({type(error).__name__}: "
                f"{clean(str(error))}), not one that torch.save wrote; {AGAIN}"
            ) from error

    def step(self, name: str, value: Any) -> None:
        """Carry out one instruction."""
        if name in _CONSTANTS:
            self.push(value)
        elif name in _NEW:
            self.push(_NEW[name]())
        elif name in _STEPS:
            _STEPS[name](self, value)
        else:
            raise ValueError(f"no weights need {name}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, number: int) -> None:
        """Note the value on top of the stack."""
        self.memo[str(number)] = self.stack[-1]

    def memoize(self, _: None) -> None:
        """Note the value on top of the stack under the next number."""
        self.put(len(self.memo))

    def get(self, number: int) -> None:
        """Push what was noted."""
        self.push(self.memo[str(number)])

    def mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Take what came since the last mark off the stack, and the mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def last(self, count: int) -> list[Any]:
        """Take the last few values off the stack."""
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("the stack is empty")
        del self.stack[-count:]
        return items

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top."""
        target = self.stack[-1]
        if isinstance(target, LeftOut):
            return
        if not isinstance(target, dict):
            raise TypeError(f"a {type(target).__name__} takes no keys")
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = type(key) in (str, int)
            name = as_text(key) if plain else f"{type(key).__name__} {len(target)}"
            if name in target:
                raise ValueError(f"two values are called {name}")
            target[name] = value

    def append_items(self, items: list[Any]) -> None:
        """Put values at the end of the list on top."""
        target = self.stack[-1]
        if isinstance(target, LeftOut):
            return
        if not isinstance(target, list):
            raise TypeError(f"a {type(target).__name__} takes no values")
        target.extend(items)

    def make_dict(self, _: None) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)

    def named(self, module: object, name: object) -> Any:
        """Give what a name stands for here; `find` refuses what it does not know."""
        module = as_text(module)
        return self.find(_REAL_NAMES.get(module, module), as_text(name))

    def call(self, function: Any, arguments: Any) -> None:
        """Push the result of one of the functions that were given."""
        self.push(function(*few(arguments)))

    def instance(self, name: str) -> None:
        """Call what a name stands for with what came since the last mark."""
        arguments = tuple(self.since_mark())
        self.call(self.named(*name.split(" ", 1)), arguments)

    def build(self, _: None) -> None:
        """Give the object on top what it holds."""
        (state,) = self.last(1)
        if isinstance(self.stack[-1], Attributes):
            self.stack[-1].values = state


_STEPS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "MEMOIZE": Machine.memoize,
    "MARK": Machine.mark,
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": Machine.make_dict,
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append_items(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.append_items(machine.since_mark()),
    "GLOBAL": lambda machine, name: machine.push(machine.named(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push(machine.named(*machine.last(2))),
    "INST": Machine.instance,
    "REDUCE": lambda machine, _: machine.call(*machine.last(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.last(2)),
    "BUILD": Machine.build,
    "BINPERSID": lambda machine, _: machine.push(machine.load(*machine.last(1))),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), left_out),
}


def few(arguments: Any) -> tuple[Any, ...]:
    """Give the arguments of a call, which are no more than a call of torch has."""
    if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
        raise TypeError("a call without a short list of arguments")
    return arguments


def refuse(file: RawFile, module: str, name: str, whole_module: bool) -> NoReturn:
    """Raise the `UnsafeError` that names what a pickle wanted."""
    wanted = clean(f"{module}.{name}")
    if module == "os":
        wanted += f" ({clean(f'posix.{name}')} in the file)"  # as Linux and macOS call it
    cure = "weights are tensors and plain values: use this file nowhere, ask for safetensors"
    if whole_module:
        cure = "it is a whole module: where you trust it, save its state_dict() and load that"
    raise UnsafeError(f"{file.path} wants to run {wanted}, nothing was run; {cure}")
