"""Linear layers in float32 on the CPU: torch's products (MKL's, mostly) against oneDNN's.

    python benchmarks/linear.py

Prints how many times as fast as torch's oneDNN's product is, one thread, by the process's CPU time:
for the output, for the gradient by the input and for the gradient by the weight, by the shape of
the layer and the number of tokens. Above 1.00 oneDNN's is the faster one. `linear` in
`vitrail/model/kernels.py` chooses by these numbers; what the choice is worth in a step of training
is what `speed.py` shows.

Both run in turns and write into memory that the process keeps, as training has it.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.model.kernels import SMALLEST_ONEDNN, _product
from vitrail.training.process import memory_kept

SHAPES = ((64, 256), (192, 192), (192, 768), (768, 192), (384, 1536), (768, 768))  # in, out
TOKENS = (65, 260, 1040, 4160)
ROUNDS, MACS_A_ROUND = 9, 3e8

Work = Callable[[], Tensor]


def pairs(tokens: int, inner: int, outer: int) -> dict[str, tuple[Work, Work]]:
    """Give each product of a layer by torch and by oneDNN."""
    x, weight = torch.randn(tokens, inner), torch.randn(outer, inner)
    bias, gradient = torch.randn(outer), torch.randn(tokens, outer)
    return {
        "output": (lambda: F.linear(x, weight, bias), lambda: _product(x, weight, bias)),
        "by input": (lambda: gradient @ weight, lambda: _product(gradient, weight.t())),
        "by weight": (lambda: gradient.t() @ x, lambda: _product(gradient.t(), x.t())),
    }


def ratio(pair: tuple[Work, Work], repeats: int) -> float:
    """Give the first one's median time over the second one's, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for work, found in zip(pair, times, strict=True):
            start = time.process_time()
            for _ in range(repeats):
                work()
            found.append(time.process_time() - start)
    torchs, onednns = (median(found[1:]) for found in times)
    return torchs / onednns


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    print("tokens  layer        M mult.-adds  output  by input  by weight")
    with memory_kept():
        for tokens in TOKENS:
            for inner, outer in SHAPES:
                macs = tokens * inner * outer
                repeats = max(1, round(MACS_A_ROUND / macs))
                found = [ratio(p, repeats) for p in pairs(tokens, inner, outer).values()]
                mark = "*" if macs >= SMALLEST_ONEDNN else " "
                numbers = "{:6.2f}  {:8.2f}  {:9.2f}".format(*found)
                layer = f"{inner} -> {outer}"
                print(f"{tokens:6}  {layer:11}  {macs / 1e6:12.1f}{mark} {numbers}")
    print("* products that training takes from oneDNN on AMD, but those of the gradient by weight")


if __name__ == "__main__":
    main()
