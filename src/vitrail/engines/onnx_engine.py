"""ONNX Runtime as an engine: the same file format everywhere, float32 on any CPU."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.data.preprocess import Preprocess
from vitrail.engines.compiled import Compiled, CompiledEngine, logits_alone
from vitrail.errors import ConfigError
from vitrail.model.vit import ViT

_LARGEST = 1_900_000_000  # bytes of weights; in memory ONNX is one message, of at most 2 GiB


def onnx_engine(model: ViT, preprocess: Preprocess, dtype: str = "float32") -> CompiledEngine:
    """Build the engine; raises `ConfigError` for another dtype than float32."""
    if dtype != "float32":
        raise ConfigError(
            f'engine "onnx" has no {dtype} on a CPU: take dtype "float32", or engine "openvino" '
            "or torch"
        )
    return CompiledEngine("onnx", dtype, model, preprocess, _compiled)


def exported(
    module: nn.Module,
    example: Tensor,
    dynamic: dict[int, Any],
    inputs: Sequence[str] = ("images",),
    outputs: Sequence[str] = ("logits",),
    *,
    optimize: bool = False,
) -> torch.onnx.ONNXProgram:
    """Give a module in eval mode of one input as an ONNX program; `dynamic` are its free axes.

    A runtime optimises by itself: without `optimize` it runs as fast, and S/16 is built in 7 s and
    not in 10. A file that others read, or quantise, is better with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter itself calls
        program = torch.onnx.export(
            module,
            (example,),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(dynamic,),
            dynamo=True,
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program


def _compiled(model: ViT) -> Compiled:
    # 2: what is 1 in the example would be 1 for ever.
    example = torch.zeros(2, model.config.channels, *model.config.image_size)
    program = exported(logits_alone(model), example, {0: torch.export.Dim("batch")})
    if not is_large(model):
        return _runs(session(program.model_proto.SerializeToString()))
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        program.save(path, external_data=True)
        return _runs(session(str(path)))


def is_large(module: nn.Module) -> bool:
    """Say whether the weights go beyond what ONNX holds in one message: they need a file beside."""
    return sum(t.nbytes for t in module.state_dict().values()) > _LARGEST


def session(source: str | bytes) -> Any:
    """Give ONNX Runtime's session of a file or of its bytes, with torch's number of threads."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: its warnings tell of constants that it leaves in place
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _runs(session: Any) -> Compiled:
    def run(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run(None, {"images": images})
        return np.asarray(logits)

    return run
