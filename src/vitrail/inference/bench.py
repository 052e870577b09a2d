"""What each engine gives on this machine: images a second, memory, and whether it answers alike."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.data.progress import Counter
from vitrail.engines.build import engine
from vitrail.engines.torch_engine import check_finite
from vitrail.inference.bench_plan import Setting, macs
from vitrail.inference.bench_process import Failed, Process, started
from vitrail.inference.peak import matrix_rate
from vitrail.weights.bundle import Bundle, save

ROUNDS, FEWEST = 5, 3  # in which settings take turns; where batches take long, the fewer
_BUILDING = 5  # of those turns: about as long does building take


class Row(NamedTuple):
    """What came of a setting; figures are None where they could not be had."""

    setting: Setting
    images_per_second: float | None
    share_of_peak: float | None
    memory_mib: float | None
    agreement: float | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """Give plain values; `error` is among them for a setting that failed."""
        values = {**self.setting._asdict(), **self._asdict()}
        left_out = {"setting", "error"} if self.error is None else {"setting"}
        return {name: value for name, value in values.items() if name not in left_out}


class Found(NamedTuple):
    """The rows of all settings, or of those that were begun before Ctrl-C."""

    rows: list[Row]
    is_whole: bool


def bench(
    bundle: Bundle,
    chosen: Sequence[Setting],
    sample: Tensor,
    device: torch.device,
    *,
    threads: int | None = None,
    seconds: float = 2.0,
) -> Found:
    """Measure settings, each in a process of its own, those of one batch size in turns.

    `sample`, uint8 B C H W, is what is timed and answered for; agreement is with torch in float32.
    A setting is timed for so many `seconds` in all, or for three batches where they take longer.
    One that fails, be it by a crash, has a row that says so. Raises `NonFiniteError` where the
    model's answers are no numbers.
    """
    exact = engine(bundle, "torch", "float32", device=device.type)
    logits = torch.cat([exact.run(images).cpu() for images in sample.split(16)])
    check_finite(logits)
    peaks = {dtype: matrix_rate(device, dtype) for dtype in {each.dtype for each in chosen}}
    with TemporaryDirectory(prefix="vitrail-bench-") as folder:
        save(bundle, Path(folder, "bundle"))
        torch.save(sample, Path(folder, "sample.pt"))
        about = {"folder": folder, "device": device.type, "threads": threads}
        race = _Race(chosen, about, logits.argmax(dim=1).tolist(), seconds)
        is_whole = race.run()
    return Found([race.row(each, 2 * macs(bundle), peaks) for each in race.begun], is_whole)


class _Race:
    """Settings, and what has been measured of those that were begun."""

    def __init__(
        self, chosen: Sequence[Setting], about: dict[str, Any], wanted: list[int], seconds: float
    ) -> None:
        self.chosen, self.about, self.wanted, self.seconds = chosen, about, wanted, seconds
        self.begun: list[Setting] = []
        self.times: dict[Setting, list[float]] = {}  # seconds of a batch, one a round
        self.memory: dict[Setting, int | None] = {}  # bytes
        self.errors: dict[Setting, str] = {}
        self.agreement: dict[tuple[str, str], float] = {}  # by engine and dtype

    def run(self) -> bool:
        """Measure all, as far as Ctrl-C lets; say whether that was all."""
        with Counter("turns", len(self.chosen) * (_BUILDING + ROUNDS)) as self.counter:
            try:
                for _, group in groupby(self.chosen, key=lambda setting: setting.batch):
                    with ExitStack() as stack:
                        self._take_turns(self._built(list(group), stack))
            except KeyboardInterrupt:
                return False
        return True

    def row(self, setting: Setting, flops: int, peaks: dict[str, float | None]) -> Row:
        """Give the row of a setting; an image is `flops`, and a second `peaks` of them at most."""
        error, times = self.errors.get(setting), self.times.get(setting)
        if error is not None or not times:
            return Row(setting, None, None, None, None, error)
        rate, peak = setting.batch / median(times), peaks[setting.dtype]
        memory = self.memory.get(setting)
        return Row(
            setting,
            rate,
            None if peak is None else rate * flops / peak,
            None if memory is None else memory / 2**20,
            self.agreement.get(setting[:2]),
            None,
        )

    def _built(self, group: list[Setting], stack: ExitStack) -> dict[Setting, Process]:
        """Start the processes of settings, all at once; `stack` ends them."""
        processes = {setting: stack.enter_context(started()) for setting in group}
        self.begun += group
        for setting, process in processes.items():
            process.tell("build", {**self.about, **setting._asdict()})
        for setting, process in processes.items():
            self._says(setting, 0)
            with self._its_own(setting):
                process.hear()
                if setting[:2] not in self.agreement:
                    found = process.ask("answers")
                    same = sum(one == other for one, other in zip(found, self.wanted, strict=True))
                    self.agreement[setting[:2]] = same / len(found)
            self._says(setting, _BUILDING)
        return processes

    def _take_turns(self, processes: dict[Setting, Process]) -> None:
        """Time settings whose processes are there; while one works the others wait."""
        began, within = time.perf_counter(), self.seconds * len(processes)
        for number in range(ROUNDS):
            if number >= FEWEST and time.perf_counter() - began > within:
                return
            for setting, process in processes.items():
                self._says(setting, 0)
                with self._its_own(setting):
                    if setting not in self.errors:
                        seconds = process.ask("time", self.seconds / ROUNDS)
                        self.times.setdefault(setting, []).append(seconds)
                        self.memory[setting] = process.ask("memory")
                self._says(setting, 1)

    def _says(self, setting: Setting, turns: int) -> None:
        self.counter.about = str(setting)
        self.counter.add(turns)

    @contextmanager
    def _its_own(self, setting: Setting) -> Iterator[None]:
        """Note what a setting fails with."""
        try:
            yield
        except Failed as error:
            self.errors[setting] = str(error)
