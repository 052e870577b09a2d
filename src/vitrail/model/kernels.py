"""Which kernels run attention and the linear layers: the one place where they are chosen.

The choice hangs on the device, the dtype and the shape, and never on a time measured: a run that is
resumed must meet the kernels that it met before, to the bit.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# On the CPU in bfloat16, two matrix products with a softmax between them are 1.3 to 1.8 times as
# fast as the fused kernel at inference and 1.8 to 6.2 times in training, at 17 to 1,025 tokens,
# and slower at 2,305. In float32 the fused kernel is the faster one everywhere.
# (EPYC with AVX-512 bf16, one thread: `python benchmarks/attention.py`.)
LONGEST_WRITTEN_OUT = 1100

# On AMD, oneDNN's products in float32 are faster than MKL's, which torch calls: on a Zen 4, where
# MKL reaches three quarters of the peak, by 1.0 to 1.5 times for the output and for the gradient by
# the input, and not for the gradient by the weight; a step of training a small ViT takes .88 of the
# time. Of fewer multiply-adds than this the call costs more than the product gains.
# (`python benchmarks/linear.py`, `python benchmarks/speed.py --only train`.)
SMALLEST_ONEDNN = 30_000_000


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Give softmax(q k^T / sqrt(d)) v, B K N d, for q of B K N d, k and v of B K M d.

    `mask` broadcasts to B K N M: True where a query may look, a row without any True giving zeros;
    or numbers in q's dtype that are added to the scores before the softmax. `dropout` is the share
    of attention weights to drop, the rest being scaled up.
    """
    if mask is None or mask.is_floating_point():
        return _attend(q, k, v, mask, dropout)
    # A softmax over nothing is 0 / 0. Such a row looks everywhere, and what it saw is struck out:
    # neither its output nor a gradient is ever NaN.
    mask = mask.expand(torch.broadcast_shapes(mask.shape, (q.shape[-2], k.shape[-2])))
    nowhere = ~mask.any(dim=-1, keepdim=True)
    return _attend(q, k, v, mask | nowhere, dropout).masked_fill(nowhere, 0.0)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    on_cpu = q.device.type == "cpu"
    if on_cpu and q.dtype == torch.bfloat16 and k.shape[-2] <= LONGEST_WRITTEN_OUT:
        return _written_out(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    # Softmax sums in float32 whatever it is given; autocast would copy all scores there and back.
    with torch.autocast(q.device.type, enabled=False):
        # The product wants q in one piece, and scaling it in one piece is three times as fast.
        scores = (q.contiguous() * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # B K N M
        if mask is not None and mask.is_floating_point():
            scores = scores + mask
        elif mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return F.dropout(scores.softmax(dim=-1), dropout) @ v


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give x W^T + b, ... O, of x, ... I, `weight` O I and `bias` O."""
    if _trains_by_onednn(x, weight):
        return _OneDNNLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _trains_by_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which has kernels of its own, and asks nothing of a shape
        return False
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST_ONEDNN
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # which ask F.linear for more
        and _gains_by_onednn()
    )


@cache
def _gains_by_onednn() -> bool:
    """Say whether this is an AMD processor and oneDNN's private operators do here what they did."""
    cpu = Path("/proc/cpuinfo")
    if not torch.backends.mkldnn.is_available() or not cpu.exists():
        return False
    if "AuthenticAMD" not in cpu.read_text() or not torch.backends.mkl.is_available():
        return False
    x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.ones(4)
    try:
        found = _product(x, weight, bias), _product(x @ weight.t(), weight.t())
    except (AttributeError, RuntimeError):  # a later torch may have others
        return False
    wanted = F.linear(x, weight, bias), F.linear(x @ weight.t(), weight.t())
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """`F.linear` whose output, and whose gradient by x, are oneDNN's products.

    The gradient by the weight stays MKL's, which is the faster one there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        # Asked for with a graph of its own, for a second derivative, it is torch's, which has one.
        product = F.linear if torch.is_grad_enabled() else _product
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t()) if by_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if by_weight else None,
            rows.sum(dim=0) if by_bias else None,
        )
