"""The model's faster form for inference on a CPU: oneDNN's packed matrices.

A linear layer of torch reorders its weight for the processor in each call, and writes its output
once more for the bias, the GELU and the residual sum. Here the weight is reordered once, and what
follows the product happens while its output is still in the cache. On AMD, where MKL leaves half
of AVX-512 unused, most of the gain is in float32 (`benchmarks/speed.py`).

The twin of a model is a ViT too, with all its methods; what is not a matrix is shared with the
model, which stays as it is: who has no more use for the twin drops it. The operators are torch's
own but private (its compiler emits them), so that `packed` tries them before it trusts them.
"""

import copy
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitrail.data.preprocess import Preprocess
from vitrail.model.kernels import attend
from vitrail.model.vit import (
    ACTIVATIONS,
    EncoderBlock,
    FeedForward,
    PatchEmbedding,
    ViT,
    patches,
)

# What the product may be followed by at no cost: the operator's name of it, and its variant.
_FUSED = {
    ACTIVATIONS["gelu"]: ("gelu", "none"),
    ACTIVATIONS["gelu_tanh"]: ("gelu", "tanh"),
    ACTIVATIONS["silu"]: ("swish", ""),
}
# A packed matrix stands beside the model's own: of the largest models there is no second copy.
_MOST_BYTES = 4 * 2**30

Part = TypeVar("Part", bound=nn.Module)


def packed(model: ViT, preprocess: Preprocess, dtype: torch.dtype) -> ViT | None:
    """Give the packed twin of a model on the CPU, computing in `dtype`; None where there is none.

    It takes normalised images, or uint8 pixels, whose normalisation is a part of its first matrix.
    There is none where torch was built without oneDNN, the processor lacks bfloat16, the model is
    larger than 4 GiB, or the twin does not agree with the model.
    """
    weights = sum(p.nbytes for p in model.parameters())
    if not _is_there(dtype) or weights > _MOST_BYTES:
        return None
    with torch.no_grad():
        # Layer scales are folded in the precision of the weights, before they are rounded.
        blocks = {
            str(i): PackedBlock(cast(EncoderBlock, b), dtype) for i, b in enumerate(model.blocks)
        }
        twin = _with(
            _cast(_with(model, blocks=nn.ModuleList(), patch_embed=nn.Identity()), dtype),
            blocks=_with(model.blocks, **blocks),
            patch_embed=PackedPatches(model.patch_embed, preprocess, dtype),
        )
        return twin.eval() if _agree(twin, model, dtype) else None


class PackedLinear(nn.Module):
    """A linear layer that is packed, its output scaled by channel where it is asked for."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        gamma: Tensor | None = getattr(
            scale, "gamma", None
        )  # of a layer scale; others are the identity
        if gamma is not None:
            weight, bias = weight * gamma[:, None], None if bias is None else bias * gamma
        self.weight = _operators()._reorder_linear_weight(weight.detach().to(dtype).contiguous())
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor, then: str = "none", variant: str = "") -> Tensor:
        return _operators()._linear_pointwise(x, self.weight, self.bias, then, [], variant)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Give the output, and the residual stream added to it."""
        return _operators()._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


class PackedPatches(nn.Module):
    """The patch embedding, B C H W to B N D, that also reads pixels, uint8, as they are.

    ((p / 255 - mean) / std) w + b is p (w / (255 std)) + (b - sum(w mean / std)).
    """

    def __init__(self, plain: PatchEmbedding, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        self.plain = _cast(plain, dtype)
        self.dtype, self.preprocess, self.folded = dtype, preprocess, None
        if plain.norm_patch is None:  # a norm of the patches reads them normalised
            mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
            weight = plain.proj.weight
            bias = -(weight * mean / std).sum(dim=(1, 2, 3))
            if plain.proj.bias is not None:
                bias = bias + plain.proj.bias
            twin = copy.deepcopy(plain)
            twin.proj.weight.copy_(weight / (255 * std))
            self.folded = PackedLinear(twin.matrix, bias, dtype)

    @property
    def proj(self) -> nn.Conv2d:
        """The projection of normalised images."""
        return self.plain.proj

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return self.plain(images.to(self.dtype))
        if self.folded is None:
            return self.plain(self.preprocess.normalize(images).to(self.dtype))
        self.plain.check(images)
        # bfloat16 has eight bits, as a pixel has: nothing is lost.
        return self.folded(patches(images, self.plain.size).to(self.dtype))


class PackedBlock(nn.Module):
    """An `EncoderBlock` with packed matrices, B N D to B N D; its parts have the same names."""

    def __init__(self, block: EncoderBlock, dtype: torch.dtype) -> None:
        super().__init__()
        attn = block.attn
        self.norm1, self.norm2 = _cast(block.norm1, dtype), _cast(block.norm2, dtype)
        self.attn = _with(
            _cast(_with(attn, qkv=nn.Identity(), proj=nn.Identity()), dtype),
            qkv=PackedLinear(attn.qkv.weight, attn.qkv.bias, dtype),
            proj=PackedLinear(attn.proj.weight, attn.proj.bias, dtype, block.ls1),
        )
        self.mlp = PackedFeedForward(block.mlp, dtype, block.ls2)
        self.ls1 = self.ls2 = nn.Identity()  # a part of the matrices now

    def forward(
        self, x: Tensor, mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        seen = attend(*self.attn.split(self.norm1(x), rotation), mask)
        proj = cast(PackedLinear, self.attn.proj)
        x = proj.plus(rearrange(seen, "b k n d -> b n (k d)"), x)
        return self.mlp.fc2.plus(self.mlp.hidden(self.norm2(x)), x)


class PackedFeedForward(nn.Module):
    """A `FeedForward` with packed matrices, B N D to B N D."""

    def __init__(self, mlp: FeedForward, dtype: torch.dtype, scale: nn.Module) -> None:
        super().__init__()
        self.fc1 = PackedLinear(mlp.fc1.weight, mlp.fc1.bias, dtype)
        self.fc2 = PackedLinear(mlp.fc2.weight, mlp.fc2.bias, dtype, scale)
        self.gated, self.activation = mlp.gated, mlp.activation
        self.then = None if mlp.gated else _FUSED.get(mlp.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Give the hidden units, B N of the second matrix's width."""
        if self.then is not None:
            return self.fc1(x, *self.then)
        if not self.gated:
            return self.activation(self.fc1(x))
        gate, up = self.fc1(x).chunk(2, dim=-1)
        return F.silu(gate) * up


def _is_there(dtype: torch.dtype) -> bool:
    """Say whether this torch has the operators, and this processor the arithmetic."""
    if not torch.backends.mkldnn.is_available() or not hasattr(_operators(), "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(_operators()._is_mkldnn_bf16_supported())
    )


def _agree(twin: ViT, model: ViT, dtype: torch.dtype) -> bool:
    """Say whether the first block of both does the same to some tokens; a few milliseconds."""
    if not len(model.blocks):
        return True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = torch.randn(2, 3, model.config.width)
    wanted = model.blocks[0](tokens)
    try:
        found = twin.blocks[0](tokens.to(dtype)).float()
    except RuntimeError:  # a later torch may want other arguments
        return False
    close = 1e-4 if dtype == torch.float32 else 5e-2
    return bool(((found - wanted).abs() <= close * wanted.abs().max()).all())


def _with(module: Part, **parts: nn.Module) -> Part:
    """Give a copy of a module with some parts replaced; all else is shared with it."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **parts}
    return twin


def _cast(module: Part, dtype: torch.dtype) -> Part:
    """Give a module in another precision: itself where it has it already."""
    return module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)


def _operators() -> Any:
    return torch.ops.mkldnn
