"""How fast a plain ViT infers and trains on a CPU, beside the same ViT of every peer.

    python benchmarks/speed.py [--threads 1] [--rounds 9] [--only TEXT] [--write docs/speed.md]

First the machine's own ceilings are measured: its rate of matrix products in each precision, and of
copying. Then, cell by cell, all take turns in one process, step by step, so that what else the
machine does falls on all alike: the models of timm, transformers, torchvision and vit-pytorch, and
the engines of vitrail that are installed. A time is the median of the process's CPU seconds;
the ratio is timm's time over it in the same precision, and by wall time beside it; `share` is how
much of the measured matrix rate the model's multiply-adds make use of. Images are normalised ones.
Inference in bfloat16 has weights in bfloat16, training autocast; a step of training is forward,
cross-entropy, backward and AdamW. `memory` is how much a process grows that builds the model and
infers three times. Each row is printed as one line of JSON too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
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
from vitrail.weights.bundle import Bundle

ENGINES, OURS = ("torch", "onnx", "openvino"), "vitrail, "
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
        runs = engine(bundle(size), name.removeprefix(OURS), cell.dtype, device="cpu")
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


def contenders(cell: Cell) -> dict[str, Work]:
    """Give all contenders of a cell that can be had here."""
    if cell.task == "train":
        return {name: trains(cell, name) for name in (*PEERS, "vitrail")}
    works = {}
    for name in (*PEERS, *(OURS + name for name in ENGINES)):
        try:
            works[name] = infers(cell, name)
        except VitrailError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return works


def bundle(size: Size) -> Bundle:
    """Give our model of a size, with random weights."""
    labels = tuple(str(i) for i in range(size.classes))
    preprocess = Preprocess(size=(size.image, size.image), mean=HALF, std=HALF)
    return Bundle(model=ours(size), preprocess=preprocess, labels=labels)


def raced(works: dict[str, Work], rounds: int) -> dict[str, tuple[float, float]]:
    """Give each one's median CPU and wall seconds, taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (median(c for c, _ in found), median(w for _, w in found))
        for name, found in times.items()
    }


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


def memory(cell: Cell, name: str) -> int:
    """Give by how many MiB a process of its own grows at most, building a contender and running."""
    command = [sys.executable, __file__, "--memory", name, "--only", cell.title]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def grown(cell: Cell, name: str) -> int:
    """Measure it, in that process; what the libraries take before is not counted."""
    infers(Cell("infer", "C6/4", 1, "float32"), name)()  # imports all of them
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest use so far
    before = _status("VmRSS")
    work = infers(cell, name)
    for _ in range(3):
        work()
    return (_status("VmHWM") - before) // 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="the cells whose title has this text")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cells = [cell for cell in CELLS if given.only in cell.title]
    if given.memory:
        print(grown(cells[0], given.memory))
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
        report(cell, given.rounds, rates, page)
    page.write(given.write)


def report(cell: Cell, rounds: int, rates: dict[str, float], page: Page) -> None:
    """Measure a cell and write its rows."""
    works = contenders(cell)
    size = SIZES[cell.size]
    macs = summary(ours(size), size=(3, size.image, size.image)).macs
    flops = 2 * macs * cell.batch * (1 if cell.task == "infer" else 3)
    found = raced(works, rounds)
    works.clear()
    for name, (cpu, wall) in found.items():
        row = {
            "cell": cell.title,
            "who": name,
            "cpu_ms": round(1000 * cpu, 1),
            "ratio": round(found["timm"][0] / cpu, 2),
            "wall_ratio": round(found["timm"][1] / wall, 2),
            "share": round(flops / cpu / 1e9 / rates[cell.dtype], 3),
            "memory_mib": memory(cell, name) if cell.task == "infer" else None,
        }
        print(json.dumps(row), file=sys.stderr, flush=True)
        name = f"**{name}**" if name.startswith("vitrail") else name
        times = (f"{row['cpu_ms']:.0f}", f"{row['ratio']:.2f}", f"{row['wall_ratio']:.2f}")
        page.row(cell.title, name, *times, f"{row['share']:.0%}", str(row["memory_mib"] or ""))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
