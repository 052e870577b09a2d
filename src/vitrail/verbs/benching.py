"""The verb that measures engines."""

import math
import os
import sys
from dataclasses import dataclass
from typing import Any

from vitrail.data.inputs import check
from vitrail.engines.names import DTYPES, ENGINES, check_engine
from vitrail.errors import ConfigError, check_counts
from vitrail.verbs.words import Device, Dtype, EngineName, Text, as_json


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure each engine on this machine: images a second, memory, the same answers or not."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    data: str | None = None  # images to compare answers on: a DATA address, a folder; else noise
    engine: tuple[EngineName, ...] = ("auto",)  # one or more; auto: all that are installed
    dtype: tuple[Dtype, ...] = ("auto",)  # one or more; auto: what the processor computes in
    batch_size: tuple[int, ...] | None = None  # one or more, else 1, 8 and 64, if they take seconds
    threads: int | None = None  # that compute, else as many as torch takes
    device: Device = "auto"
    seconds: float = 2.0  # for which each row is timed; to build it comes on top
    json: bool = False  # print one JSON document

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        self._check()
        is_random = parse_origin(self.model).kind == "preset"
        if is_random:
            print(f"{self.model} has random weights: agreement means nothing", file=sys.stderr)
        if self.data is not None:
            check([self.data])
        import torch

        from vitrail.engines.torch_engine import pick_device
        from vitrail.inference.bench import bench
        from vitrail.inference.bench_plan import settings
        from vitrail.weights.loading import load

        # No other engine than torch runs on a GPU: one that is named is measured where it runs.
        others = self.device == "auto" and set(self.engine) - {"auto", "torch"}
        device = pick_device("cpu" if others else self.device)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        bundle = load(self.model)
        chosen = settings(bundle, device, self.engine, self.dtype, self.batch_size)
        sample = self._sample(bundle, device)
        how: dict[str, Any] = {"threads": self.threads, "seconds": self.seconds}
        found = bench(bundle, chosen, sample, device, **how)
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        where = device.type + f", {threads} thread{'s' * (threads > 1)}" * (threads > 0)
        self._tell(found.rows, len(sample), where)
        if not found.is_whole:
            print("stopped: these are the rows until then", file=sys.stderr)
            return 130
        return 2 if any(row.error is not None for row in found.rows) else 0

    def _check(self) -> None:
        """Raise `ConfigError` for what cannot be measured, before anything is loaded."""
        for flag in ("engine", "dtype", "batch_size"):
            if getattr(self, flag) == ():
                raise ConfigError(
                    f"--{flag.replace('_', '-')} names none: name one, or leave it out"
                )
        for name in self.engine:
            check_engine(name, self.device)
        check_counts(**{} if self.threads is None else {"threads": self.threads})
        for size in self.batch_size or ():
            check_counts(batch_size=size)
        cores = os.cpu_count() or 1
        if self.threads is not None and self.threads > cores:
            raise ConfigError(f"threads is {self.threads}; this machine runs {cores} at a time")
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ConfigError(f"seconds is {self.seconds}; it should be above 0")
        engines = ENGINES if "auto" in self.engine else self.engine
        dtypes = DTYPES["torch"] if "auto" in self.dtype else self.dtype
        for name in engines:
            if name in self.engine and not set(DTYPES[name]) & set(dtypes):
                raise ConfigError(
                    f'engine "{name}" has no {" or ".join(dtypes)}, but {", ".join(DTYPES[name])}'
                )

    def _sample(self, bundle: Any, device: Any) -> Any:
        """Give the images that engines are compared on."""
        from vitrail.data.sets import labelled_or_not
        from vitrail.engines.automatic import SAMPLE
        from vitrail.inference.bench_plan import noise, sample_size
        from vitrail.inference.choosing import sampled

        size = sample_size(bundle, device, SAMPLE)
        if self.data is None:
            return noise(bundle, min(size, 64))
        items, notes = labelled_or_not(self.data)
        for note in notes:
            print(note, file=sys.stderr)
        return sampled(list(items), bundle.preprocess, size)

    def _tell(self, rows: Any, images: int, where: str) -> None:
        from vitrail.inference.bench_text import advice, beginning, table

        what = (
            f"{images} images of noise" if self.data is None else f"{images} images of {self.data}"
        )
        command = beginning(self.model, self.device, self.threads)
        said = advice(rows, images, self.data is not None, command)
        if self.json:
            print(as_json([row.to_json() for row in rows]))
            print(said, file=sys.stderr)
        else:
            print(f"{self.model} on {where}; agreement with torch in float32 on {what}\n")
            print(f"{table(rows)}\n\n{said}", flush=True)
