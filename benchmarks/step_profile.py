"""Where a training step goes: the share of each kind of work, by torch's own profiler.

    python benchmarks/step_profile.py [--threads 1] [--write docs/step-profile.md]

A step is that of `speed.py`: forward, cross-entropy, backward and AdamW, of the small ViT C6/4 with
64 images on a CPU, in a process that keeps freed memory, as `vitrail train` does. Shares are of the
time within operators, without what they call; what lies between operators (Python, the allocator)
is in none of them.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import speed  # the script beside this one
from runs import Page
from vitrail.training.process import memory_kept

STEPS = 5
# The first kind whose word is in an operator's name.
KINDS = {
    "matrix products": ("mm", "convolution"),
    "attention": ("attention", "softmax"),
    "GELU": ("gelu",),
    "layer norms": ("layer_norm",),
    "copies and casts": ("copy", "cat"),
    "sums (gradients of biases)": ("::sum",),
    "residual sums and scalings": ("::add", "::mul"),
    "optimizer": ("adam", "::sqrt", "addcdiv", "addcmul", "lerp", "::div_"),
}


def kind(name: str) -> str:
    low = name.lower()
    return next((k for k, words in KINDS.items() if any(w in low for w in words)), "the rest")


def shares(cell: speed.Cell) -> dict[str, float]:
    """Give the share of each kind of work in a step of ours."""
    work = speed.trains(cell, "vitrail")
    with memory_kept():
        for _ in range(3):
            work()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(STEPS):
                work()
    times: Counter[str] = Counter()
    for row in found.key_averages():
        times[kind(row.key)] += int(row.self_cpu_time_total)
    return {name: times[name] / times.total() for name in (*KINDS, "the rest")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cells = [cell for cell in speed.CELLS if cell.task == "train"]
    about = f"{given.threads} thread{'s' * (given.threads > 1)}, means of {STEPS} steps"
    columns = ("work", *(f"{cell.size}, {cell.dtype}" for cell in cells))
    page = Page("Where a training step goes", __doc__, about, columns)
    found = [shares(cell) for cell in cells]
    for name in found[0]:
        page.row(name, *(f"{each[name]:.1%}" for each in found))
    page.write(given.write)


if __name__ == "__main__":
    main()
