"""The model's faster form for inference on a CPU: oneDNN's packed matrices.

A linear layer of torch reorders its weight for the processor in each call, and writes its output
once more for the bias, the GELU and the residual sum. Here the weight is reordered once, and what
follows the product happens while its output is still in the cache. On AMD, where MKL leaves half
of AVX-512 unused, most of the gain is in float32 (`benchmarks/speed.py`).

The twin of a model is a ViT too, with all its methods; what is not a matrix is shared with the
model, which stays as it is: who has no more use for the twin drops it. Who has no more use for the
model lets the twin take its matrices, one after the other, so that none is held twice. The
operators are torch's own but private (its compiler emits them), so that `packed` tries them before
it trusts them.
"""

import copy
import ctypes
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.kernels import attend
from vitrail.model.vit import (
    ACTIVATIONS,
    ClassificationHead,
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
# A packed matrix stands beside one that the model keeps: of the largest there is no second copy.
_MOST_BYTES = 4 * 2**30

Part = TypeVar("Part", bound=nn.Module)


def packed(
    model: ViT, preprocess: Preprocess, dtype: torch.dtype, *, takes: bool = False
) -> ViT | None:
    """Give the packed twin of a model on the CPU, computing in `dtype`; None where there is none.

    It takes normalised images, or uint8 pixels, whose normalisation is a part of its first matrix.
    There is none where torch was built without oneDNN, the processor lacks bfloat16, the model is
    larger than 4 GiB and keeps its matrices, or the two forms do not agree. Where it
    `takes` the matrices of the model's blocks and head, the model cannot run any more.
    """
    weights = sum(p.nbytes for p in model.parameters())
    if not _is_there(dtype) or (weights > _MOST_BYTES and not takes):
        return None
    with torch.no_grad():
        if takes:
            _round(model, dtype)
        if not _agree(model.config, dtype):
            return None
        # MKL has other kernels for one row, for two and for four: packed, the last bits of an
        # answer do not depend on how many images are asked for at once.
        heads = {
            name: _packed_layer(head, dtype, takes)
            for name in ("head", "head_dist")
            if isinstance(head := getattr(model, name), ClassificationHead)
        }
        blocks = {
            str(i): PackedBlock(cast(EncoderBlock, block), dtype, takes)
            for i, block in enumerate(model.blocks)
        }
        if takes:
            _give_back()
        twin = _with(
            _cast(_with(model, blocks=nn.ModuleList(), patch_embed=nn.Identity()), dtype),
            blocks=_with(model.blocks, **blocks),
            patch_embed=PackedPatches(model.patch_embed, preprocess, dtype),
            **heads,
        )
        return twin.eval()


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

    def __init__(self, block: EncoderBlock, dtype: torch.dtype, takes: bool = False) -> None:
        super().__init__()
        attn = block.attn
        self.norm1, self.norm2 = _cast(block.norm1, dtype), _cast(block.norm2, dtype)
        self.attn = _with(
            _cast(_with(attn, qkv=nn.Identity(), proj=nn.Identity()), dtype),
            qkv=_packed_layer(attn.qkv, dtype, takes),
            proj=_packed_layer(attn.proj, dtype, takes, block.ls1),
        )
        self.mlp = PackedFeedForward(block.mlp, dtype, block.ls2, takes)
        self.ls1 = self.ls2 = nn.Identity()  # a part of the matrices now

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Tensor | None = None,
        read: int | None = None,
    ) -> Tensor:
        q, k, v = self.attn.split(self.norm1(x), rotation)
        seen = attend(q[:, :, :read], k, v, mask)
        proj = cast(PackedLinear, self.attn.proj)
        x = proj.plus(rearrange(seen, "b k n d -> b n (k d)"), x[:, :read])
        return self.mlp.fc2.plus(self.mlp.hidden(self.norm2(x)), x)


class PackedFeedForward(nn.Module):
    """A `FeedForward` with packed matrices, B N D to B N D."""

    def __init__(
        self, mlp: FeedForward, dtype: torch.dtype, scale: nn.Module, takes: bool = False
    ) -> None:
        super().__init__()
        self.fc1 = _packed_layer(mlp.fc1, dtype, takes)
        self.fc2 = _packed_layer(mlp.fc2, dtype, takes, scale)
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


def _packed_layer(
    layer: nn.Linear, dtype: torch.dtype, takes: bool, scale: nn.Module | None = None
) -> PackedLinear:
    """Pack a layer; where its matrix is taken, a shape without numbers is left in its place."""
    twin = PackedLinear(layer.weight, layer.bias, dtype, scale)
    if takes:
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"))
    return twin


def _round(model: ViT, dtype: torch.dtype) -> None:
    """Round the matrices that are packed as they are, so that less stands beside packed ones.

    Autocast rounds them alike, should the model have to run after all.
    """
    for block in cast(Iterable[EncoderBlock], model.blocks):
        layers = [block.attn.qkv, block.mlp.fc1]
        layers += [block.attn.proj] * isinstance(block.ls1, nn.Identity)
        layers += [block.mlp.fc2] * isinstance(block.ls2, nn.Identity)
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.to(dtype))
    _give_back()


def _give_back() -> None:
    """Give the system what was freed between tensors that stay: a third of the process (glibc)."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _agree(config: ViTConfig, dtype: torch.dtype) -> bool:
    """Say whether a small block of this kind does the same in both forms; a few milliseconds."""
    small = config.replace(width=64, heads=4, head_width=16, mlp_width=128)
    if config.layer_scale is not None:
        small = small.replace(layer_scale=0.5)  # those that models begin with hide a wrong branch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block, tokens = EncoderBlock(small).eval(), torch.randn(2, 3, small.width)
    wanted = block(tokens)
    try:
        found = PackedBlock(block, dtype)(tokens.to(dtype)).float()
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
