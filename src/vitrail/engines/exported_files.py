"""Exported files as engines: a file answers as the bundle that it was made from."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.engines.exported import KEY, Exported
from vitrail.engines.names import check_engine
from vitrail.errors import ConfigError, UnsafeError, WeightsError, nearest
from vitrail.model.checks import check_images
from vitrail.weights import files
from vitrail.weights.bundle import Bundle

Run = Callable[[np.ndarray], np.ndarray]  # the file's input to its last output
Start = Callable[[str], Run]  # by the precision of its arithmetic

ENGINE_OF = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
_IN_PACKAGE = f"extra/{KEY}.json"  # where torch.export.save puts an extra file


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFile:
    """An exported file, to be given to `engine`, `predict` and `evaluate` in place of a bundle."""

    path: Path
    facts: Exported
    start: Start = field(repr=False)

    @property
    def preprocess(self) -> Preprocess:
        """What is done to an image before."""
        return self.facts.preprocess

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.facts.labels

    @property
    def origin(self) -> Any:
        """Where the model comes from, and how its data was split."""
        return self.facts.origin

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return ENGINE_OF[self.path.suffix]

    def digest(self) -> str:
        """Give a digest of all that decides an answer: of the file, and of its weights beside."""
        digests = [files.sha256(path) for path in parts(self.path)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


Answering = Bundle | ExportedFile  # what answers for images


def is_exported(word: str | Path) -> bool:
    """Say whether this names an exported file, by its ending."""
    return Path(word).suffix in ENGINE_OF and Path(word).expanduser().is_file()


def parts(path: Path) -> list[Path]:
    """Give the file, and the one with its weights where they stand beside it."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    beside += [path.with_name(path.name + ".data")] if path.suffix == ".onnx" else []
    return [path, *(part for part in beside if part.is_file())]


def read_export(path: str | Path, *, trust: bool = False) -> ExportedFile:
    """Open a file that `vitrail export` wrote: ONNX (.onnx), OpenVINO (.xml) or torch (.pt2).

    A torch package can run code when it is opened, whoever made it: it wants `trust`. Raises
    `UnsafeError` without it, `WeightsError` for a file that vitrail did not write or that is
    broken, and `ConfigError` where the package that runs it is not installed.
    """
    path = Path(path).expanduser()
    if path.suffix not in ENGINE_OF:
        raise WeightsError(
            f"{path} is no exported file: these end in {', '.join(ENGINE_OF)}."
            f"{nearest(path.suffix, ENGINE_OF)}"
        )
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; check the path")
    check_engine(ENGINE_OF[path.suffix])
    read = {".onnx": _read_onnx, ".xml": _read_openvino, ".pt2": _read_package}[path.suffix]
    try:
        text, start = read(path, trust)
    except (UnsafeError, WeightsError):
        raise
    except Exception as error:  # whatever a runtime may say of a broken file
        raise WeightsError(
            f"{path} cannot be opened: {type(error).__name__}: {str(error)[:300]}; export the "
            "model again"
        ) from error
    return ExportedFile(path=path, facts=Exported.from_text(text, path), start=start)


class FileEngine:
    """An exported file as an engine, on the CPU."""

    device = torch.device("cpu")

    def __init__(self, file: ExportedFile, dtype: str = "auto") -> None:
        facts = file.facts
        self.name, self.path, self.facts, self.reason = file.engine, file.path, facts, ""
        self.preprocess = facts.preprocess
        precision = "float32" if dtype in ("auto", facts.dtype) else dtype
        if precision != "float32" and (self.name != "openvino" or facts.dtype != "float32"):
            raise ConfigError(
                f"{file.path} computes in {facts.dtype}, and not in {precision}: leave the dtype "
                "out, or export the model anew"
            )
        self.dtype = precision if facts.dtype == "float32" else facts.dtype
        try:
            self.compute = file.start(precision)
        except ConfigError:
            raise
        except Exception as error:  # whatever a runtime may say
            raise ConfigError(
                f"{file.path} cannot be run here: {type(error).__name__}: {str(error)[:300]}"
            ) from error

    def run(self, images: Tensor) -> Tensor:
        """Give the logits, B classes in float32, of images, B C H W, as `TorchEngine.run` does."""
        images = images.to(self.device)
        self._check(tuple(images.shape))
        return torch.from_numpy(self.compute(self.facts.input_of(images).numpy()))

    def _check(self, shape: tuple[int, ...]) -> None:
        config = self.facts.config
        check_images(shape, config.channels, config.patch_size)
        if self.facts.any_size and min(shape[2:]) < 2 * config.patch_size:
            raise ConfigError(
                f"images of {shape[2]} x {shape[3]}: {self.path} takes two patches of "
                f"{config.patch_size} or more each way; take the model itself"
            )
        if not self.facts.any_size and shape[2:] != config.image_size:
            raise ConfigError(
                f"images of {shape[2]} x {shape[3]}: {self.path} takes "
                f"{config.image_size[0]} x {config.image_size[1]} alone; export it with any_size"
            )


def _read_onnx(path: Path, trust: bool) -> tuple[str | None, Start]:
    from vitrail.engines.onnx_engine import session

    opened = session(str(path))

    def run(images: np.ndarray) -> np.ndarray:
        names = [output.name for output in opened.get_outputs()]
        return np.asarray(opened.run(names[-1:], {opened.get_inputs()[0].name: images})[0])

    return opened.get_modelmeta().custom_metadata_map.get(KEY), lambda dtype: run


def _read_openvino(path: Path, trust: bool) -> tuple[str | None, Start]:
    from vitrail.engines.openvino_engine import check_dtype, core, started

    if not path.with_suffix(".bin").is_file():
        raise WeightsError(
            f"{path} has its weights in {path.with_suffix('.bin').name}, which is not there: keep "
            "both together"
        )
    graph = core().read_model(str(path))
    text = graph.get_rt_info([KEY]).astype(str) if graph.has_rt_info([KEY]) else None

    def start(dtype: str) -> Run:
        check_dtype(dtype)
        run, last = started(graph, dtype), len(graph.outputs) - 1
        return lambda images: run(images)[last]

    return text, start


def _read_package(path: Path, trust: bool) -> tuple[str | None, Start]:
    with zipfile.ZipFile(path) as package:
        found = [name for name in package.namelist() if name.endswith(f"/{_IN_PACKAGE}")]
        text = package.read(found[0]).decode() if len(found) == 1 else None
    if text is None:
        return None, lambda dtype: lambda images: images
    if not trust:
        raise UnsafeError(
            f"{path} can run code when it is opened, as torch's own reader of such files unpickles "
            "and evaluates: if you made it, or trust who did, give --trust (trust=True in "
            "Python); .onnx and .xml files run none"
        )
    module = torch.export.load(path).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found = module(torch.from_numpy(images))
        return (found[-1] if isinstance(found, tuple | list) else found).numpy()

    return text, lambda dtype: run
