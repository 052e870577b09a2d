"""Oracles: random tiny models of other libraries, each with a writer of files and its own answer.

An oracle is built by a function of the dtype; `oracle_*.py` hold one family each, as a table from
a name to such a function. A library is imported inside its functions: not every test needs it.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

Size = tuple[int, int]
NATIVE: Size = (40, 56)  # 5 x 7 patches of 8
SQUARE: Size = (48, 48)  # for libraries and rules that know no other
OTHER: tuple[Size, ...] = ((56, 40), (72, 24), (64, 80))  # as many tokens, fewer, more
# Of no two axes the same size: heads 6 of 4, 72 hidden, 9 classes.
WIDTH, DEPTH, HEADS, HIDDEN, CLASSES, PATCH = 24, 2, 6, 72, 9, 8
# What two orders of the same sums round differently, as a share of the largest number.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(scope="session")
def libraries(timm: ModuleType) -> None:
    """Import what the oracles stand on, whose imports warn of their own affairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class Answer(NamedTuple):
    """Logits or pooled features, and all tokens, B P+N D, after the final norm on tokens."""

    logits: Tensor
    tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """What another library says, and where to load the same model from."""

    dialect: str
    write: Callable[[Path], Path]  # into an empty folder; gives the origin
    answer: Callable[[Tensor], Answer]
    size: Size = NATIVE
    others: tuple[Size, ...] = ()  # image sizes that it resizes its positions for
    channels: int = 3
    given: Mapping[str, Any] = field(default_factory=dict)  # what its files cannot say
    config: Mapping[str, Any] = field(default_factory=dict)  # what must have been found in them
    # The encoder's tensors of its file, and of an export: no prefix, wrapper or text tower. None
    # where no export has its form.
    bare: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = dict

    def images(self, size: Size | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(2, self.channels, *(size or self.size)).to(dtype)


Build = Callable[[torch.dtype], Oracle]


def ours(model: Any, images: Tensor) -> Answer:
    """Give the same of a model of vitrail."""
    tokens = model.tokens(images)
    return Answer(model(images), torch.cat([tokens.prefix, tokens.patches], dim=1))


def difference(our: Tensor, their: Tensor) -> float:
    """Give the largest difference as a share of their largest number."""
    assert our.shape == their.shape, f"{tuple(our.shape)}, not {tuple(their.shape)}"
    assert our.dtype == their.dtype
    return ((our - their).abs().max() / their.abs().max()).item()


@torch.no_grad()
def assert_same(model: Any, oracle: Oracle, size: Size | None = None) -> None:
    dtype = next(model.parameters()).dtype
    images = oracle.images(size, dtype)
    for name, our, their in zip(
        Answer._fields, ours(model, images), oracle.answer(images), strict=True
    ):
        far = difference(our, their)
        where = f"{tuple(images.shape[2:])} pixels in {dtype}"
        assert far <= TOLERANCES[dtype], f"{name} differ by {far:.1e} of their largest, {where}"


def read(path: Path) -> dict[str, Any]:
    """Give what a file, or the weights in a folder, hold."""
    if path.is_dir():
        return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: tensor_of(arrays[name]) for name in arrays.files}
    return torch.load(path, weights_only=False)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Read an array, whose raw pairs of bytes are bfloat16."""
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(array)


def write_pth(values: Mapping[str, Any], folder: Path) -> Path:
    torch.save(values, folder / "weights.pth")
    return folder / "weights.pth"


def renamed(weights: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace each part of a key that `table` names, the longest part first."""
    parts = sorted(table, key=len, reverse=True)
    result = {}
    for key, tensor in weights.items():
        for part in parts:
            key = key.replace(part, table[part])
        result[key] = tensor
    return result


def watch(model: nn.Module, module: nn.Module, images: Tensor) -> Answer:
    """Answer for a model whose tokens nothing gives but the output of one of its modules."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        return Answer(model(images), seen[0])
    finally:
        handle.remove()


def resized(
    table: Tensor, prefix: int, source: Size, target: Size, offset: float = 0, **rule: Any
) -> Tensor:
    """Resize the patches' rows of a position table, 1 prefix+N D, from one image size to another.

    `rule` goes to torch's interpolate; with `offset` the factor is given, as DINO does.
    """
    (h, w), (th, tw) = ((a // PATCH, b // PATCH) for a, b in (source, target))
    image = table[:, prefix:].unflatten(1, (h, w)).permute(0, 3, 1, 2)
    wanted: dict[str, Any] = {"size": (th, tw)}
    if offset:
        wanted = {"scale_factor": ((th + offset) / h, (tw + offset) / w)}
    image = torch.nn.functional.interpolate(image, mode="bicubic", **wanted, **rule)
    return torch.cat([table[:, :prefix], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
