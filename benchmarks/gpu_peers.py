"""How fast a plain ViT infers and trains on one GPU, beside timm's.

    python benchmarks/gpu_peers.py [--device cuda] [--rounds 20] [--only TEXT] [--write FILE]

The device's rate of matrix products in bfloat16 is measured first. Then, cell by cell, all take
turns, step by step, in one process: timm's model and ours, compiled alike, in bfloat16, either
under autocast or with weights in bfloat16, and `vitrail predict`'s engine as it is; each with the
attention kernel that torch takes by itself, and again with cuDNN's where it can be had. For one
image at once there are CUDA graphs as well (torch's `reduce-overhead`). A step of training is
forward, cross-entropy, backward and torch's fused AdamW. Images are normalised and on the device.

A time is a median, with the device awaited before and after. The ratio is the time of timm's model
compiled under autocast, with torch's choice of attention, over it; `share` is how much of the
measured rate a contender's multiply-adds make use of; vitrail's last block makes no tokens that the
head does not read, and they are not counted.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from peers import SIZES, Size, ours, timm  # the script beside this one
from runs import Page
from vitrail.data.preprocess import Preprocess
from vitrail.engines.build import torch_engine
from vitrail.inference.peak import matrix_rate, wait
from vitrail.model.shapes import summary
from vitrail.weights.bundle import Bundle

HALF = (0.5, 0.5, 0.5)
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
KERNELS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "": nullcontext,
    ", cuDNN": lambda: sdpa_kernel(CUDNN_FIRST, set_priority=True),
}
MODELS = {"timm": timm, "vitrail": ours}
FIRST = "timm, compiled"  # what all are compared with

Work = Callable[[], object]


class Cell(NamedTuple):
    """What is compared: a task, a size, and how many images at once."""

    task: str
    size: str
    batch: int

    @property
    def title(self) -> str:
        return f"{self.task} {self.size} b{self.batch}"


CELLS = (
    Cell("infer", "B/16", 256),
    Cell("infer", "B/16", 1),
    Cell("infer", "S/16", 1),
    Cell("train", "S/16", 256),
    Cell("train", "B/16", 128),
)


def contenders(cell: Cell, device: torch.device) -> Iterator[tuple[str, Work]]:
    """Give all who take part in a cell, by name; each has run once, and is compiled."""
    forms = infers if cell.task == "infer" else trains
    for kernel, context in KERNELS.items():
        if kernel and device.type != "cuda":
            continue
        for name, work in forms(cell, device):
            run = _within(context, work)
            run()
            yield name + kernel, run


def infers(cell: Cell, device: torch.device) -> Iterator[tuple[str, Work]]:
    size = SIZES[cell.size]
    images = torch.randn(cell.batch, 3, size.image, size.image, device=device)
    modes = ("", ", CUDA graph") if cell.batch == 1 and device.type == "cuda" else ("",)
    for (name, build), graph in product(MODELS.items(), modes):
        mode = "reduce-overhead" if graph else None
        for weights in (torch.float32, torch.bfloat16):
            model = build(size).eval().to(device, weights)
            answers = getattr(model, "logits_alone", model)
            compiled = torch.compile(answers, mode=mode, fullgraph=True)
            low, given = weights == torch.float32, images.to(weights)
            held = "" if low else ", bf16 weights"
            yield f"{name}, compiled{held}{graph}", _inferring(compiled, given, device, low)
    preprocess = Preprocess(size=(size.image, size.image), mean=HALF, std=HALF)
    labels = tuple(map(str, range(size.classes)))
    bundle = Bundle(model=ours(size), preprocess=preprocess, labels=labels)
    engine = torch_engine(bundle, "bfloat16", device.type, keeps=False)
    yield "vitrail, engine", lambda: engine.run(images)


def _inferring(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    device: torch.device,
    low: bool,
) -> Work:
    def work() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low):
            model(images)

    return work


def trains(cell: Cell, device: torch.device) -> Iterator[tuple[str, Work]]:
    size = SIZES[cell.size]
    images = torch.randn(cell.batch, 3, size.image, size.image, device=device)
    labels = torch.randint(size.classes, (cell.batch,), device=device)
    for name, build in MODELS.items():
        yield f"{name}, compiled", _training(build, size, images, labels)


def _training(
    build: Callable[[Size], torch.nn.Module], size: Size, images: torch.Tensor, labels: torch.Tensor
) -> Work:
    model = build(size).train().to(images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    compiled = torch.compile(model, fullgraph=True)

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = compiled(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return work


def _within(context: Callable[[], AbstractContextManager[object]], work: Work) -> Work:
    def run() -> None:
        with context():
            work()

    return run


def seconds(work: Work, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def report(cell: Cell, rounds: int, device: torch.device, peak: float, page: Page) -> None:
    """Measure a cell and write its rows."""
    size = SIZES[cell.size]
    products = 1 if cell.task == "infer" else 3
    shape = (3, size.image, size.image)
    work = {less: summary(ours(size), shape, logits_alone=less).macs for less in (False, True)}
    torch.compiler.reset()
    all_of_them = dict(contenders(cell, device))
    times: dict[str, list[float]] = {name: [] for name in all_of_them}
    for turn in range(rounds + 3):
        for name, run in all_of_them.items():
            took = seconds(run, device)
            if turn >= 3:  # graphs are recorded in the first turns
                times[name].append(took)
    medians = {name: median(found) for name, found in times.items()}
    for name, took in medians.items():
        macs = work[name.startswith("vitrail")]
        row = {
            "cell": cell.title,
            "who": name,
            "ms": round(1000 * took, 2),
            "images_per_second": round(cell.batch / took),
            "ratio": round(medians[FIRST] / took, 2),
            "share": round(2 * products * macs * cell.batch / took / peak, 3),
        }
        print(json.dumps(row), file=sys.stderr, flush=True)
        shown = f"**{name}**" if name.startswith("vitrail") else name
        numbers = (f"{row['ms']:.2f}", f"{row['images_per_second']:,}", f"{row['ratio']:.2f}")
        page.row(cell.title, shown, *numbers, f"{row['share']:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="the cells whose title has this text")
    parser.add_argument("--batch", type=int, help="images at once in every cell, else its own")
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured")
        return
    peak = matrix_rate(device, "bfloat16")
    assert peak is not None
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    about = (
        f"{where}, {peak / 1e12:,.1f} TFLOP/s in bfloat16 at most; medians of {given.rounds} rounds"
    )
    columns = ("cell", "who", "ms", "images/s", "times timm", "share")
    page = Page("Speed on a GPU", __doc__, about, columns)
    for cell in CELLS:
        if given.only in cell.title:
            report(cell._replace(batch=given.batch or cell.batch), given.rounds, device, peak, page)
    page.write(given.write)


if __name__ == "__main__":
    main()
