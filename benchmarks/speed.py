"""How fast a plain ViT infers and trains on a CPU, beside the same ViT of every peer.

    python benchmarks/speed.py [--threads 1] [--rounds 9] [--only TEXT] [--write docs/speed.md]

First the machine's own ceilings are measured: its rate of matrix products in each precision, and of
copying. Then, cell by cell, all take turns, step by step, each in a process of its own, so that
what else the machine does falls on all alike: the models of timm, transformers, torchvision and
vit-pytorch, and the engines of vitrail that are installed. A time is the median of the process's
CPU seconds; the ratio is timm's time over it in the same precision, and by wall time beside it;
`share` is how much of the measured matrix rate a contender's multiply-adds make use of; vitrail has
6 % (S/16, B/16) or 12 % (C6/4) fewer of them, since its last block makes no tokens that the head
does not read. Images are normalised ones. Inference in bfloat16 has weights in bfloat16, training
autocast; a step of training is forward, cross-entropy, backward and torch's AdamW, and vitrail's
process keeps freed memory, as `vitrail train` has it do. `memory` is how much a process grows that
builds the model and runs it three times; torch's engine takes the matrices of the model, as
`vitrail predict` has it do.
Each row is printed as one line of JSON too.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F

from peers import PEERS, SIZES, Size, ours  # the script beside this one
from runs import Page
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import engine
from vitrail.errors import VitrailError
from vitrail.model.shapes import summary
from vitrail.training.process import memory_kept
from vitrail.weights.bundle import Bundle

ENGINES, OURS = ("torch", "onnx", "openvino"), "vitrail, "
ENGINE_OF_TRAINING = {"vitrail": OURS + "torch"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HALF = (0.5, 0.5, 0.5)

Work = Callable[[], object]


class Cell(NamedTuple):
    """What is compared: a task, a size, how many images at once, and a precision."""

    task: str
    size: str
    batch: int
    dtype: str

    @property
    def title(self) -> str:
        return f"{self.task} {self.size} b{self.batch} {self.dtype}"


CELLS = [
    *(Cell("infer", *s, d) for s in (("S/16", 8), ("B/16", 1), ("C6/4", 64)) for d in DTYPES),
    *(Cell("train", "C6/4", 64, d) for d in DTYPES),
]


def infers(cell: Cell, name: str) -> Work:
    """Give what a contender does to infer once; `VitrailError` where it cannot be had here."""
    size, dtype = SIZES[cell.size], DTYPES[cell.dtype]
    images = torch.randn(cell.batch, 3, size.image, size.image)
    if name not in PEERS:
        runs = engine(bundle(size), name.removeprefix(OURS), cell.dtype, device="cpu", keeps=False)
        return lambda: runs.run(images)
    model, images = PEERS[name](size).eval().to(dtype), images.to(dtype)
    return torch.inference_mode()(lambda: model(images))


def trains(cell: Cell, name: str) -> Work:
    """Give a contender's step of training."""
    size, low = SIZES[cell.size], cell.dtype != "float32"
    images = torch.randn(cell.batch, 3, size.image, size.image)
    labels = torch.randint(size.classes, (cell.batch,))
    model = PEERS.get(name, ours)(size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def bundle(size: Size) -> Bundle:
    """Give our model of a size, with random weights."""
    labels = tuple(str(i) for i in range(size.classes))
    preprocess = Preprocess(size=(size.image, size.image), mean=HALF, std=HALF)
    return Bundle(model=ours(size), preprocess=preprocess, labels=labels)


class Contender:
    """One who takes part in a cell, in a process of its own: `measured` answers a line each."""

    def __init__(self, cell: Cell, name: str, threads: int) -> None:
        words = ("--run", name, "--only", cell.title, "--threads", str(threads))
        self.name, self.times = name, list[tuple[float, float]]()
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdin and self.process.stdout
        self.asks, self.answers = self.process.stdin, self.process.stdout
        self.memory, self.lacks = json.loads(self.answers.readline())

    def turn(self) -> None:
        """Have it do its work once."""
        self.asks.write("\n")
        self.asks.flush()
        self.times.append(tuple(json.loads(self.answers.readline())))

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians: of the process's CPU seconds, and of the clock's."""
        return median(cpu for cpu, _ in self.times), median(wall for _, wall in self.times)

    def ends(self) -> None:
        self.asks.close()
        self.process.wait()


def measured(cell: Cell, name: str) -> None:
    """Be a contender: work once for each line that comes, and answer with the seconds it took."""
    try:
        work, memory = warm(cell, name)
    except VitrailError as error:
        print(json.dumps([None, str(error)]), flush=True)
        return
    print(json.dumps([memory, None]), flush=True)
    # `vitrail train` runs in it, too.
    with memory_kept() if (cell.task, name) == ("train", "vitrail") else nullcontext():
        if cell.task == "train":
            work()
        for _ in sys.stdin:
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            found = (time.process_time() - cpu, time.perf_counter() - wall)
            print(json.dumps(found), flush=True)


def warm(cell: Cell, name: str) -> tuple[Work, int]:
    """Give a contender's work, done three times, and the MiB that the process grew by at most.

    What the libraries take before is not counted.
    """
    infers(Cell("infer", "C6/4", 1, "float32"), ENGINE_OF_TRAINING.get(name, name))()  # imports
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what is asked for
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest use so far
    before = _status("VmRSS")
    work = (infers if cell.task == "infer" else trains)(cell, name)
    for _ in range(3):
        work()
    return work, (_status("VmHWM") - before) // 1024


def ceilings() -> dict[str, float]:
    """Give the rates of matrix products and of copying, in G a CPU second: the best seen."""
    rates = {}
    for name, dtype in DTYPES.items():
        x, w = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(w)
        forms: tuple[Work, ...] = (
            lambda x=x, w=w: F.linear(x, w),
            lambda x=x, w=packed: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
        )
        rates[name] = 2 * 2048**3 / min(_best(form) for form in forms) / 1e9
    source = torch.zeros(64 * 2**20, dtype=torch.uint8)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.nbytes / _best(lambda: target.copy_(source)) / 1e9
    return rates


@torch.inference_mode()
def _best(work: Work) -> float:
    times = []
    for _ in range(8):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="the cells whose title has this text")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cells = [cell for cell in CELLS if given.only in cell.title]
    if given.run:
        measured(cells[0], given.run)
        return
    rates = ceilings()
    threads = f"{given.threads} thread{'s' * (given.threads > 1)}"
    machine = "{float32:.0f} GFLOP in float32, {bfloat16:.0f} in bfloat16, {copy:.1f} GB copied"
    about = (
        f"{threads}, medians of {given.rounds} rounds. The machine, in a CPU second: "
        f"{machine.format(**rates)}"
    )
    columns = ("cell", "who", "CPU ms", "times timm", "by wall time", "share", "memory, MiB")
    page = Page("Speed on a CPU", __doc__, about, columns)
    for cell in cells:
        report(cell, given.rounds, given.threads, rates, page)
    page.write(given.write)


def report(cell: Cell, rounds: int, threads: int, rates: dict[str, float], page: Page) -> None:
    """Measure a cell and write its rows."""
    size = SIZES[cell.size]
    # Of their models everybody computes all, ourselves what the head reads.
    shape, products = (3, size.image, size.image), 1 if cell.task == "infer" else 3
    work = {less: summary(ours(size), shape, logits_alone=less).macs for less in (False, True)}
    names = ("vitrail",) if cell.task == "train" else [OURS + name for name in ENGINES]
    all_of_them = [Contender(cell, name, threads) for name in (*PEERS, *names)]
    for contender in all_of_them:
        if contender.lacks:
            print(f"{contender.name}: {contender.lacks}", file=sys.stderr)
    racing = [contender for contender in all_of_them if not contender.lacks]
    for _ in range(rounds):
        for contender in racing:
            contender.turn()
    timm = next(contender for contender in racing if contender.name == "timm").seconds
    for contender in racing:
        contender.ends()
        cpu, wall = contender.seconds
        macs = work[contender.name.startswith("vitrail")]
        row = {
            "cell": cell.title,
            "who": contender.name,
            "cpu_ms": round(1000 * cpu, 1),
            "ratio": round(timm[0] / cpu, 2),
            "wall_ratio": round(timm[1] / wall, 2),
            "share": round(2 * products * macs * cell.batch / cpu / 1e9 / rates[cell.dtype], 3),
            "memory_mib": contender.memory,
        }
        print(json.dumps(row), file=sys.stderr, flush=True)
        name = contender.name
        name = f"**{name}**" if name.startswith("vitrail") else name
        times = (f"{row['cpu_ms']:.0f}", f"{row['ratio']:.2f}", f"{row['wall_ratio']:.2f}")
        page.row(cell.title, name, *times, f"{row['share']:.0%}", str(contender.memory))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
