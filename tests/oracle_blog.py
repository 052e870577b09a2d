"""The blog post's ViT, rebuilt module by module, so that its state dict has the post's names."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from conftest import randomize
from oracles import (
    CLASSES,
    DEPTH,
    HEADS,
    HIDDEN,
    NATIVE,
    PATCH,
    WIDTH,
    Build,
    Oracle,
    watch,
    write_pth,
)

Scale = Literal["before softmax", "after softmax"]
CUT = Rearrange("b c (h s1) (w s2) -> b (h w) (s1 s2 c)", s1=PATCH, s2=PATCH)


class PatchEmbedding(nn.Module):
    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.projection = nn.Sequential(CUT, nn.Linear(3 * PATCH**2, WIDTH))
        if convolution:
            conv = nn.Conv2d(3, WIDTH, kernel_size=PATCH, stride=PATCH)
            self.projection = nn.Sequential(conv, Rearrange("b e h w -> b (h w) e"))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        patches = NATIVE[0] // PATCH * (NATIVE[1] // PATCH)
        self.positions = nn.Parameter(torch.zeros(patches + 1, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        x = self.projection(images)
        cls = repeat(self.cls_token, "1 n e -> b n e", b=len(x))
        return torch.cat([cls, x], dim=1) + self.positions


class MultiHeadAttention(nn.Module):
    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (h d qkv) -> qkv b h n d", h=HEADS, qkv=3)
        energy = torch.einsum("bhqd, bhkd -> bhqk", q, k)
        scaling = WIDTH**0.5
        if self.scale == "before softmax":
            attention = F.softmax(energy / scaling, dim=-1)
        else:
            attention = F.softmax(energy, dim=-1) / scaling
        out = torch.einsum("bhqk, bhkd -> bhqd", attention, v)
        return self.projection(rearrange(out, "b h n d -> b n (h d)"))


class ResidualAdd(nn.Module):
    def __init__(self, *fn: nn.Module) -> None:
        super().__init__()
        self.fn = nn.Sequential(*fn)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


def encoder_block(scale: Scale) -> nn.Module:
    drop = nn.Dropout(0.0)
    mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), drop, nn.Linear(HIDDEN, WIDTH))
    return nn.Sequential(
        ResidualAdd(nn.LayerNorm(WIDTH), MultiHeadAttention(scale), drop),
        ResidualAdd(nn.LayerNorm(WIDTH), mlp, drop),
    )


def vit(scale: Scale, convolution: bool) -> nn.Sequential:
    head = (Reduce("b n e -> b e", "mean"), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))
    return nn.Sequential(
        PatchEmbedding(convolution),
        nn.Sequential(*(encoder_block(scale) for _ in range(DEPTH))),
        nn.Sequential(*head),
    )


def build(
    dtype: torch.dtype, *, scale: Scale = "before softmax", convolution: bool = False
) -> Oracle:
    model = randomize(vit(scale, convolution)).eval().to(dtype)
    dialect = "blog" if scale == "before softmax" else "blog-after-softmax"
    return Oracle(
        dialect=dialect,
        write=partial(write_pth, model.state_dict()),
        answer=partial(watch, model, model[1]),
        # Which of the two scales it is, is in the code alone.
        given={"heads": HEADS, "image_size": NATIVE, "dialect": dialect},
        config={"pooling": "mean_all", "final_norm": "pooled", "norm_eps": 1e-5},
    )


CASES: dict[str, Build] = {
    "linear": build,
    "convolution": partial(build, convolution=True),
    "scaled after softmax": partial(build, scale="after softmax"),
    "scaled after softmax, convolution": partial(build, scale="after softmax", convolution=True),
}


def by_hand(weights: dict[str, Tensor], x: Tensor, scale: Scale) -> Tensor:
    """Compute what the encoder gives of tokens, B N D, head by head and from the tensors alone."""
    for i in range(DEPTH):
        first, second = f"1.{i}.0.fn.", f"1.{i}.1.fn."
        y = F.layer_norm(x, (WIDTH,), weights[f"{first}0.weight"], weights[f"{first}0.bias"])
        rows = y @ weights[f"{first}1.qkv.weight"].T + weights[f"{first}1.qkv.bias"]
        d, heads = WIDTH // HEADS, []
        for head in range(HEADS):
            mine = rows[..., 3 * d * head : 3 * d * (head + 1)]
            q, k, v = (mine[..., of::3] for of in range(3))
            if scale == "before softmax":
                heads.append((q @ k.mT / WIDTH**0.5).softmax(-1) @ v)
            else:
                heads.append((q @ k.mT).softmax(-1) @ v / WIDTH**0.5)
        mixed = torch.cat(heads, dim=-1)
        x = x + mixed @ weights[f"{first}1.projection.weight"].T
        x = x + weights[f"{first}1.projection.bias"]
        y = F.layer_norm(x, (WIDTH,), weights[f"{second}0.weight"], weights[f"{second}0.bias"])
        y = F.gelu(y @ weights[f"{second}1.0.weight"].T + weights[f"{second}1.0.bias"])
        x = x + y @ weights[f"{second}1.3.weight"].T + weights[f"{second}1.3.bias"]
    return x


def pooled_by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Give logits of the encoder's tokens: the mean over all of them, normalised, projected."""
    x = reduce(x, "b n e -> b e", "mean")
    x = F.layer_norm(x, (WIDTH,), weights["2.1.weight"], weights["2.1.bias"])
    return x @ weights["2.2.weight"].T + weights["2.2.bias"]
