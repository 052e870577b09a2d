"""OpenVINO as an engine: on x86 the fastest that there is, in float32 and in bfloat16."""

import sys
import warnings
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrail.data.preprocess import Preprocess
from vitrail.engines.compiled import Compiled, CompiledEngine, logits_alone
from vitrail.errors import ConfigError
from vitrail.model.vit import ViT

# What OpenVINO calls a precision among the abilities of a processor, and where it is set.
_PRECISIONS = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16")}


def openvino_engine(model: ViT, preprocess: Preprocess, dtype: str = "float32") -> CompiledEngine:
    """Build the engine; raises `ConfigError` for a dtype that it or the processor does not have."""
    check_dtype(dtype)
    return CompiledEngine(
        "openvino", dtype, model, preprocess, lambda model: _compiled(model, dtype)
    )


def check_dtype(dtype: str) -> None:
    """Raise `ConfigError` for a dtype that OpenVINO or this processor does not have."""
    here = openvino_dtypes()
    if dtype not in _PRECISIONS:
        raise ConfigError(f'engine "openvino" has no {dtype} on a CPU, but {", ".join(here)}')
    if dtype not in here:
        raise ConfigError(
            f'this processor has no arithmetic in {dtype}: take dtype "float32", or a processor '
            "with AVX-512 BF16 or AMX"
        )


def openvino_dtypes() -> tuple[str, ...]:
    """Give the dtypes that this processor can compute in."""
    abilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(dtype for dtype, (ability, _) in _PRECISIONS.items() if ability in abilities)


def graph_of(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """Give a module in eval mode as an `openvino.Model` of any number of inputs of this shape."""
    runtime = openvino()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Of the ways in, tracing is the quickest by far: S/16 takes 1.1 seconds of one core, 5.6 as an
    # exported program and 7 through ONNX, and what comes out is equally fast. The tracer warns of
    # each check of the size, which is indeed fixed, and that torch itself has left it.
    # `convert_model` would do the same, and report it to Intel where the caller has OpenVINO's
    # telemetry on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(
            module,
            example_input=torch.zeros(1, *shape),
            shared_memory=False,
            trace_kwargs={"check_trace": False},
        )
    frontend = runtime.frontend.FrontEndManager().load_by_framework("pytorch")
    graph = frontend.convert(frontend.load(decoder))
    graph.reshape([-1, *shape])
    return graph


def _compiled(model: ViT, dtype: str) -> Compiled:
    run = started(
        graph_of(logits_alone(model), (model.config.channels, *model.config.image_size)), dtype
    )
    return lambda images: run(images)[0]


def started(graph: Any, dtype: str) -> Callable[[np.ndarray], Any]:
    """Compile an `openvino.Model` of one input for this processor: an array in, its outputs out."""
    settings = {
        # Without it, float32 becomes bfloat16 wherever the processor has that.
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype][1],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,  # one batch at a time has all threads
        "ENABLE_CPU_PINNING": False,  # or two processes would share the same cores
    }
    compiled, lock = core().compile_model(graph, "CPU", settings), Lock()

    def run(images: np.ndarray) -> Any:
        with lock:  # a compiled model answers one caller at a time
            return compiled([images])

    return run


@cache
def core() -> Any:
    """Give OpenVINO's `Core`: one for the whole process, never given back.

    With its part for CPUs comes another stack for the signals of the thread that asks first. Given
    back on another thread, that stack would be memory no more: the next Ctrl-C would be a crash.
    """
    return openvino().Core()


def openvino() -> Any:
    """Import OpenVINO, and have it report to nobody."""
    # Importing it reports to Google Analytics, unless the package that does so is not there. What
    # is None cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as runtime

    return runtime
