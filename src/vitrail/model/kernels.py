"""Which kernel runs attention: the one place where it is chosen."""

import torch
import torch.nn.functional as F
from torch import Tensor

# On the CPU in bfloat16, two matrix products with a softmax between them are 1.3 to 1.8 times as
# fast as the fused kernel at inference and 1.8 to 6.2 times in training, at 17 to 1,025 tokens,
# and slower at 2,305. In float32 the fused kernel is the faster one everywhere.
# (EPYC with AVX-512 bf16, one thread: `python benchmarks/attention.py`.)
LONGEST_WRITTEN_OUT = 1100


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
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # B K N M
        if mask is not None and mask.is_floating_point():
            scores = scores + mask
        elif mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return F.dropout(scores.softmax(dim=-1), dropout) @ v
