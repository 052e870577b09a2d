"""The one door to every engine: a bundle in, something that runs it out."""

import torch
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.preprocess import Preprocess
from vitrail.engines.automatic import choose
from vitrail.engines.engine import Engine
from vitrail.engines.exported_files import Answering, ExportedFile, FileEngine
from vitrail.engines.names import check_engine
from vitrail.engines.torch_engine import TorchEngine, pick_device
from vitrail.errors import ConfigError
from vitrail.weights.bundle import Bundle


def engine(
    bundle: Answering,
    name: str = "auto",
    dtype: str = "auto",
    *,
    device: str = "auto",
    merge: int = 0,
    aspect: bool = False,
    keeps: bool = True,
    images: int | None = None,
    sample: Tensor | None = None,
) -> Engine:
    """Build the engine `name`, one of torch, onnx and openvino, for a bundle.

    An exported file (`read_export`) has one engine, which runs it on the CPU.

    `auto` is torch on a GPU. On a CPU it tries what is installed and takes the fastest one that
    answers as torch does, where the number of `images` to come (None: no end of them) is worth the
    seconds that building it takes; its `reason` says why.

    `dtype` is float32, bfloat16 or float16; `auto` is bfloat16 on a GPU that multiplies it and
    float32 elsewhere. For engine auto with dtype auto it is bfloat16 on a CPU too, where that is
    faster and finds the same class the likeliest for 99.5 % of a `sample` of images to come, uint8
    B C H W, of which there should be 256.

    `merge` is how many patches each block merges into others, which is faster and less exact. With
    `aspect` its `preprocess` leaves every image its own aspect. Both are torch's alone. With
    `keeps` off the engine may take the matrices of the bundle's model, which is of no use any
    more then, rather than hold them twice. Raises `ConfigError` for an engine, dtype or device that
    there is not, or is not here.
    """
    check_engine(name, device, merge, aspect)
    if isinstance(bundle, ExportedFile):
        return _of_file(bundle, name, dtype, device, merge, aspect)
    if name == "torch" or merge or aspect:
        runs = torch_engine(bundle, dtype, device, merge, aspect, keeps)
        if name == "auto":
            runs.reason = f"no other engine has {'merge' if merge else 'aspect'}"
        return runs
    if name != "auto":
        return _compiled(bundle, name, dtype)

    def build(name: str, dtype: str, last: bool = False) -> Engine:
        if name != "torch":
            return _compiled(bundle, name, dtype)
        return torch_engine(bundle, dtype, device, keeps=keeps or not last)

    return choose(build, bundle, dtype, images, sample)


def torch_engine(
    bundle: Bundle,
    dtype: str = "auto",
    device: str = "auto",
    merge: int = 0,
    aspect: bool = False,
    keeps: bool = True,
) -> TorchEngine:
    """Build torch's engine, the one that gives tokens of any layer too."""
    where = pick_device(device)
    if dtype == "auto":
        fast = where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if fast else "float32"
    preprocess: Preprocess | OwnAspect = bundle.preprocess
    if aspect:
        preprocess = OwnAspect(plain=bundle.preprocess, patch=bundle.model.config.patch_size)
    return TorchEngine(bundle.model.to(where), preprocess, dtype, merge, keeps=keeps)


def _of_file(
    file: ExportedFile, name: str, dtype: str, device: str, merge: int, aspect: bool
) -> FileEngine:
    """Build the engine of an exported file, and refuse what such a file cannot have."""
    if name not in ("auto", file.engine):
        raise ConfigError(
            f'{file.path} is run by engine "{file.engine}", not "{name}": leave the engine out'
        )
    if device not in ("auto", "cpu"):
        raise ConfigError(f'{file.path} is run on the CPU, not on "{device}": leave it out')
    if merge or aspect:
        raise ConfigError(
            f"{file.path} has no {'merge' if merge else 'aspect'}: leave it out, or take the "
            "model that the file was made from"
        )
    return FileEngine(file, dtype)


def _compiled(bundle: Bundle, name: str, dtype: str) -> Engine:
    """Build an engine on the CPU; only then are its packages imported."""
    precision = "float32" if dtype == "auto" else dtype
    if name == "onnx":
        from vitrail.engines.onnx_engine import onnx_engine

        return onnx_engine(bundle.model, bundle.preprocess, precision)
    from vitrail.engines.openvino_engine import openvino_engine

    return openvino_engine(bundle.model, bundle.preprocess, precision)
