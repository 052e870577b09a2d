"""Engine `auto`: torch, or what is faster here and answers alike, where there is enough to do."""

from math import ceil
from time import perf_counter
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vitrail.engines.engine import Engine
from vitrail.engines.names import is_installed
from vitrail.errors import ConfigError
from vitrail.model.shapes import summary
from vitrail.weights.bundle import Bundle

# Multiply-adds on each thread that are worth another engine: they take torch about 45 seconds,
# and building one takes a model of 12 blocks 2 (OpenVINO) or 7 (ONNX Runtime).
_WORTH = 2e12
_MOST_IMAGES = 50_000  # are worth it for any model
_TRIAL = 1e10  # multiply-adds of a batch that is timed: a fifth of a second
_FASTER = 1.1  # times: what is less is noise
# The largest difference of a logit that may be, as a share of the largest logit.
_ERROR = {"float32": 1e-4, "bfloat16": 0.1}
SAMPLE = 256  # images of which bfloat16 must answer ...
_ALIKE = 0.995  # ... this share as float32 does


class Build(Protocol):
    """Builds an engine; the `last` one may take what the model is made of."""

    def __call__(self, name: str, dtype: str, last: bool = False) -> Engine: ...


def images_worth(bundle: Bundle) -> int:
    """Give how many images are worth the time to build another engine than torch, on a CPU."""
    return min(_MOST_IMAGES, ceil(_WORTH * torch.get_num_threads() / _macs(bundle)))


def choose(
    build: Build, bundle: Bundle, dtype: str, images: int | None, sample: Tensor | None
) -> Engine:
    """Give the engine for so many images (None: without an end), with the reason for it.

    With `dtype` auto it computes in float32, or in bfloat16 where that answers images of a
    `sample`, uint8 B C H W, alike.
    """
    few = images is not None and images < images_worth(bundle)
    settled = few or (dtype != "auto" and _other() is None)
    exact = build("torch", dtype, settled)
    if exact.device.type != "cpu":
        return _because(exact, f"no other engine runs on {exact.device.type}")
    if few:
        count = "1 image is" if images == 1 else f"{images:,} images are"
        return _because(exact, f"{count} answered for before another engine is built")
    exact = _faster(build, bundle, exact)
    if dtype == "auto":
        exact = _rougher(build, bundle, exact, sample)
    return exact


def _faster(build: Build, bundle: Bundle, plain: Engine) -> Engine:
    """Give another engine in the same dtype, where it is here, answers alike and is faster."""
    name = _other()
    if name is None:
        return _because(plain, "no other is installed: pip install 'vitrail[openvino]'")
    try:
        other = build(name, plain.dtype)
    except ConfigError as error:
        return _because(plain, str(error))
    trial = _tried(plain, other, bundle)
    if not trial.error <= _ERROR[plain.dtype]:  # what is no number is not
        return _because(plain, f"{name} differs from it by {trial.error:.1g} of the largest logit")
    if trial.speedup < _FASTER:
        return _because(plain, f"{name} is no faster here, {trial.speedup:.1f} times")
    return _because(other, f"{trial.speedup:.1f} times as fast here as torch")


def _other() -> str | None:
    """Give the engine beside torch that is fastest of those that are installed."""
    return next((name for name in ("openvino", "onnx") if is_installed(name)), None)


def _rougher(build: Build, bundle: Bundle, exact: Engine, sample: Tensor | None) -> Engine:
    """Give bfloat16 where it is faster and answers the sample alike."""
    if sample is None or len(sample) < 0.9 * SAMPLE:  # some may not have been read
        return _because(exact, f"{exact.reason}; too few images to try bfloat16 on")
    try:
        rough = build("torch" if exact.name == "onnx" else exact.name, "bfloat16")
    except ConfigError as error:
        return _because(exact, f"{exact.reason}; {error}")
    speedup = _tried(exact, rough, bundle).speedup
    if speedup < _FASTER:
        return _because(exact, f"{exact.reason}; bfloat16 is no faster, {speedup:.1f} times")
    alike = agreement(exact, rough, sample)
    told = f"bfloat16 answers {alike:.1%} of {len(sample)} images as float32 does"
    if alike < _ALIKE:
        return _because(exact, f"{exact.reason}; {told}: too few")
    return _because(rough, f"{exact.reason}; {told}, {speedup:.1f} times as fast")


def agreement(one: Engine, other: Engine, images: Tensor) -> float:
    """Give the share of uint8 images, B C H W, for which both find the same class the likeliest."""
    same = [
        one.run(batch).argmax(dim=1) == other.run(batch).argmax(dim=1) for batch in images.split(16)
    ]
    return float(torch.cat(same).float().mean())


class _Trial(NamedTuple):
    error: float  # largest difference of a logit, as a share of the largest logit
    speedup: float


def _tried(plain: Engine, other: Engine, bundle: Bundle) -> _Trial:
    """Compare two engines on noise: their answers, and the faster of two runs of each."""
    rows = max(1, min(64, int(_TRIAL / _macs(bundle))))
    shape = (rows, bundle.preprocess.channels, *bundle.preprocess.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted, found = plain.run(images), other.run(images)
    error = (wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-12)
    seconds = [[_seconds(runs, images) for runs in (plain, other)] for _ in range(2)]
    best = [min(times) for times in zip(*seconds, strict=True)]
    return _Trial(float(error), best[0] / best[1])


def _seconds(runs: Engine, images: Tensor) -> float:
    start = perf_counter()
    runs.run(images)
    return perf_counter() - start


def _macs(bundle: Bundle) -> int:
    """Give the multiply-adds that an image takes."""
    shape = (bundle.preprocess.channels, *bundle.preprocess.size)
    return summary(bundle.model, shape).macs


def _because(runs: Engine, reason: str) -> Engine:
    runs.reason = reason
    return runs
