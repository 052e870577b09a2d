"""A graph on disk, in each form: ONNX, OpenVINO, a package of `torch.export`."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from vitrail.engines.exported import KEY, Exported
from vitrail.errors import ConfigError, VitrailError
from vitrail.exporting.graph import Graph
from vitrail.weights import disk

Batches = Callable[[], Iterator[np.ndarray]]  # of the graph's input, to calibrate int8 on


def write(graph: Graph, path: Path, batches: Batches | None = None) -> None:
    """Write a graph in the form that the path's ending names; `batches` are for int8 alone.

    Raises `ConfigError` with what the exporter said where it cannot.
    """
    try:
        with torch.no_grad():
            _WRITERS[path.suffix](graph, path, batches)
    except (VitrailError, OSError):
        raise
    except Exception as error:  # whatever a version of an exporter that nobody has tried may say
        raise ConfigError(
            f"this model cannot be exported as {path.suffix}: {type(error).__name__}: "
            f"{str(error)[:300]}; the other forms may do"
        ) from error


def _write_onnx(graph: Graph, path: Path, batches: Batches | None) -> None:
    from vitrail.engines.onnx_engine import exported, is_large

    facts = graph.facts
    program = exported(
        graph.module, graph.example, graph.dynamic, [facts.takes], facts.outputs, optimize=True
    )
    program.model.metadata_props[KEY] = facts.to_text()
    # A file of one message holds 2 GiB at most; weights beyond that stand beside.
    program.save(path, external_data=is_large(graph.module))
    if facts.dtype == "int8":
        assert batches is not None
        _quantize(path, facts, batches)


def _write_openvino(graph: Graph, path: Path, batches: Batches | None) -> None:
    with TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder, "model.onnx")
        _write_onnx(graph, onnx, batches)
        openvino_from(onnx, path, graph.facts)


def openvino_from(onnx: Path, path: Path, facts: Exported) -> None:
    """Write OpenVINO's two files of the ONNX one: int8 and any image size come along."""
    from vitrail.engines.openvino_engine import core, openvino

    runtime = openvino()
    model = core().read_model(str(onnx))
    model.set_rt_info(facts.to_text(), [KEY])
    runtime.save_model(model, str(path), compress_to_fp16=False)  # or weights would be rounded


def _write_package(graph: Graph, path: Path, batches: Batches | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter itself calls
        program = torch.export.export(
            graph.module, (graph.example,), dynamic_shapes=(graph.dynamic,)
        )
        buffer = io.BytesIO()  # on a disk that is full, torch's own writer ends the process
        torch.export.save(program, buffer, extra_files={f"{KEY}.json": graph.facts.to_text()})
    disk.write_bytes(path, buffer.getvalue())


def _quantize(path: Path, facts: Exported, batches: Batches) -> None:
    """Turn the matrix products of an ONNX file into int8, in its place.

    Weights have a scale for each channel, activations one each from the extremes that `batches`
    show (Jacob et al. 2018). Norms, softmax, GELU and the patches stay float32.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = batches()

        # No more of them is None, which its annotation does not say.
        def get_next(self) -> Any:
            batch = next(self.left, None)
            return None if batch is None else {facts.takes: batch}

    with TemporaryDirectory(dir=path.parent) as folder, _quiet():
        plain = Path(folder, path.name)
        for part in (path, path.with_name(path.name + ".data")):
            if part.exists():
                part.replace(plain.with_name(part.name))
        large = plain.with_name(path.name + ".data").exists()
        quantize_static(
            plain,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {KEY: facts.to_text()})
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the advice of the quantizer: the file was optimised by its exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


_WRITERS = {".onnx": _write_onnx, ".xml": _write_openvino, ".pt2": _write_package}
