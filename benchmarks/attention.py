"""Attention on the CPU: the fused kernel against two matrix products with a softmax between them.

    python benchmarks/attention.py

Prints how many times as fast as `F.scaled_dot_product_attention` the written-out form is, for
inference and for training, by dtype and number of tokens, on one thread. Above 1.00 the
written-out form is the faster one. `attend` in `vitrail/model/kernels.py` chooses by these numbers.

Both forms run in turns, so that what else the machine does falls on both alike. Wall time and the
process's own CPU time stand side by side: where they differ, the machine was busy.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vitrail.model import kernels

TOKENS = (17, 65, 197, 577, 1025, 2305)  # class token and 4, 8, 14, 24, 32 or 48 patches a side
HEADS, HEAD_WIDTH = 6, 64  # ViT-S
DTYPES = (torch.float32, torch.bfloat16)
TOKENS_A_BATCH = 1200
LAYOUT = "b n qkv k d -> qkv b k n d"  # views of one matrix's output, as in the model
ROUNDS, SECONDS_A_ROUND = 15, 0.02

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMS: tuple[Form, Form] = (
    F.scaled_dot_product_attention,
    partial(kernels._written_out, mask=None, dropout=0.0),
)


@torch.no_grad()
def infer(qkv: Tensor, form: Form) -> None:
    form(*rearrange(qkv, LAYOUT))


def train(qkv: Tensor, form: Form) -> None:
    out = form(*rearrange(qkv, LAYOUT))
    torch.autograd.grad(out, qkv, torch.ones_like(out))


def clocks() -> tuple[float, float]:
    """Give wall time and this process's CPU time, in seconds."""
    return time.perf_counter(), time.process_time()


def ratios(run: Callable[[Form], None]) -> tuple[float, float]:
    """Give the fused form's time over the written-out form's, by wall and by CPU time: medians."""
    for form in FORMS:  # warm up
        run(form)
    start = clocks()
    run(FORMS[0])
    repeats = max(1, round(SECONDS_A_ROUND / (clocks()[0] - start[0])))
    times: dict[Form, list[tuple[float, float]]] = {form: [] for form in FORMS}
    for _ in range(ROUNDS):
        for form in FORMS:
            start = clocks()
            for _ in range(repeats):
                run(form)
            end = clocks()
            times[form].append((end[0] - start[0], end[1] - start[1]))
    fused, written = ([median(clock) for clock in zip(*times[f], strict=True)] for f in FORMS)
    return fused[0] / written[0], fused[1] / written[1]


def main() -> None:
    torch.set_num_threads(1)
    print("dtype     tokens   inference: wall   CPU   training: wall   CPU")
    for dtype in DTYPES:
        for tokens in TOKENS:
            shape = (max(1, TOKENS_A_BATCH // tokens), tokens, 3, HEADS, HEAD_WIDTH)
            qkv = torch.randn(shape, dtype=dtype, requires_grad=True)
            wall, cpu = ratios(partial(infer, qkv))
            train_wall, train_cpu = ratios(partial(train, qkv))
            name = str(dtype).removeprefix("torch.")
            print(
                f"{name:8}  {tokens:6}  {wall:16.2f} {cpu:5.2f} {train_wall:16.2f} {train_cpu:5.2f}"
            )


if __name__ == "__main__":
    main()
