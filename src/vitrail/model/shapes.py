"""Every step from image to logits, with its shape and its cost; none of them is run.

`_Walk`, from `vit` on, says what each step makes, in the order of `vit.py` and in its axis letters
(and `M`, the hidden width of the feed-forward layer); `page.py` lays the rows out as text. Sizes
and weights are the modules' own, so a model on the meta device will do. The tests hold every row
against what the real model does.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.model.config import ViTConfig
from vitrail.model.page import Row, aligned, page
from vitrail.model.presets import preset
from vitrail.model.vit import (
    ACTIVATIONS,
    AttentionPooling,
    ClassificationHead,
    Encoder,
    EncoderBlock,
    FeedForward,
    LayerScale,
    MultiHeadAttention,
    PatchEmbedding,
    ViT,
    patches_kept,
)

_INPUTS = {1: ("features", "B D"), 2: ("tokens", "B N D"), 3: ("image", "B C H W")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All steps of a model; as text, a page that writes equal blocks out once."""

    model: str
    image_size: tuple[int, ...]  # H, W; the size that was given, for a part that reads no image
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        return sum(row.activation_bytes for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Give plain values, every row of every block among them."""
        return {
            "model": self.model,
            "image_size": list(self.image_size),
            "rows": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
            "parameters": self.parameters,
            "macs": self.macs,
            "activation_bytes": self.activation_bytes,
        }

    def __str__(self) -> str:
        return page(self.model, self.rows)


def summary(
    model_or_module: nn.Module | ViTConfig | str,
    size: tuple[int, ...] | None = None,
    *,
    name: str | None = None,
    training: bool = False,
    logits_alone: bool = False,
) -> Summary:
    """Describe each step of a model, of a part of one or of a preset, for one input of `size`.

    `size` is (C, H, W) for what reads images, (N, D) for what reads tokens, (D,) for a head.
    Without it a ViT has its native image, a `PatchEmbedding` one of 224 x 224, what reads tokens
    the 197 of ViT-B/16. Dropout and identities do nothing at inference and have no row. With
    `logits_alone` a ViT's last block makes no tokens that the head does not read; so it is with
    `training`, and a ViT that drops patches goes on with those that are left.
    Raises `ConfigError` for a module that is unknown here, or a size that does not fit.
    """
    module = model_or_module
    if isinstance(module, str):
        name, module = name or module, preset(module)
    if isinstance(module, ViTConfig):
        with torch.device("meta"):
            module = ViT(module)
    steps = _steps(module)
    given_size = _default_size(module) if size is None else tuple(size)
    walk = _Walk(given_size, training, logits_alone or training)
    steps(walk, module, "")
    given = walk.rows[0].shape[1:]
    return Summary(
        model=name or type(module).__name__,
        image_size=given[1:] if len(given) == 3 else given,
        rows=tuple(walk.rows),
    )


def presets_page(table: Mapping[str, ViTConfig]) -> str:
    """List configs by name with their sizes and parameters."""
    columns = "preset image patch width depth heads mlp classes parameters"
    rows: list[tuple[str, ...]] = [tuple(columns.split())]
    for name, config in table.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in ViT(config).parameters())
        sizes = (config.patch_size, config.width, config.depth, config.heads, config.mlp_width)
        image = "x".join(map(str, config.image_size))
        classes = str(config.classes or "-")
        rows.append((name, image, *map(str, sizes), classes, f"{parameters:,}"))
    return "\n".join(aligned(rows))


class _Walk:
    """The steps so far: the last of `rows` is what the next one reads, `letters` are its sizes."""

    def __init__(
        self, size: tuple[int, ...], training: bool = False, logits_alone: bool = False
    ) -> None:
        if len(size) not in _INPUTS or not all(isinstance(n, int) and n > 0 for n in size):
            raise ConfigError(
                f"size {size} is no input; it should be (C, H, W) for what reads images, "
                "(N, D) for what reads tokens, or (D,) for features"
            )
        name, axes = _INPUTS[len(size)]
        self.letters = dict(zip(axes.split(), (1, *size), strict=True))
        self.rows: list[Row] = []
        self.training, self.logits_alone = training, logits_alone
        self.read = ""  # the axis of the tokens that leave a block, where not all do
        self.turned = False  # whether attention turns q and k by their patch's place (rope)
        self.step(name, axes, made=False)

    def step(
        self,
        name: str,
        axes: str,
        *weights: nn.Module | Tensor,
        times: str = "0",
        einops: str = "",
        made: bool = True,
    ) -> None:
        """Add a row. Each number is a sum of `times` products; `made` says it takes new memory."""
        shape = tuple(self.size(axis) for axis in axes.split())
        learned = (w.parameters() if isinstance(w, nn.Module) else [w] for w in weights)
        row = Row(
            name=name.lstrip(". "),
            axes=axes,
            shape=shape,
            einops=einops,
            parameters=sum(w.numel() for w in chain.from_iterable(learned)),
            macs=prod(shape) * self.size(times),
            activation_bytes=4 * prod(shape) if made else 0,
        )
        self.rows.append(row)

    def size(self, axis: str) -> int:
        """Read an axis such as `N`, `P+N`, `3Kd` or `16*16*C`."""
        terms = (re.findall(r"\d+|classes|[A-Za-z]", term) for term in axis.split("+"))
        return sum(prod(self.letters.get(f) or int(f) for f in factors) for factors in terms)

    def walk(self, module: nn.Module, at: str) -> None:
        """Add the steps of a module whose dotted name is `at`."""
        _steps(module)(self, module, at)

    def each(self, modules: nn.Module, at: str) -> None:
        for name, module in modules.named_children():
            self.walk(module, f"{at}.{name}")

    def nothing(self, module: nn.Module, at: str) -> None:
        """Dropout and identities: at inference their input is their output."""

    def layer(self, module: nn.Linear | nn.LayerNorm | LayerScale, at: str) -> None:
        *lead, last = self.axes(module)
        times = "0"
        if isinstance(module, nn.Linear):
            times, out = str(module.in_features), module.out_features
            last = "D" if out == self.letters.get("D") else str(out)
        if isinstance(module, ClassificationHead):
            self.letters["classes"] = module.out_features
            last = "classes"
        self.step(at or type(module).__name__, " ".join([*lead, last]), module, times=times)

    def tokens(self, module: nn.Module) -> str:
        """Give the name of the axis of tokens, B N D, that `module` reads."""
        _, n, _ = self.axes(module, "B N D")
        self.letters["D"] = _width(module)
        return n

    def axes(self, module: nn.Module, wanted: str = "D") -> list[str]:
        """Give the axes of the last row; `ConfigError` where `module` cannot read them."""
        row, width = self.rows[-1], _width(module)
        if row.shape[-1] != width or (wanted == "B N D" and len(row.shape) != 3):
            size = f"(N, {width})" if wanted == "B N D" else f"({width},) or (N, {width})"
            raise ConfigError(
                f"{type(module).__name__} reads a size of {size}, not {row.shape[1:]}"
            )
        return row.axes.split()

    def vit(self, model: ViT, at: str) -> None:
        self.patch_embedding(model.patch_embed, f"{at}.patch_embed")
        self.embed(model, at)
        self.turned = model.config.positions == "rope"
        for i, block in enumerate(model.blocks, start=1):
            last = i == len(model.blocks) and model.config.pooling == "cls"
            self.read = "P" if last and self.logits_alone else ""
            self.walk(block, f"{at}.blocks.{i - 1}")
        self.turned, self.read = False, ""
        self.walk(model.norm, f"{at}.norm")
        self.pool(model, at)
        self.walk(model.head, f"{at}.head")
        if model.head_dist is not None:
            logits = self.rows[-1].axes
            self.step(f"{at} distillation token", "B D", made=False)
            if isinstance(model.fc_norm, nn.LayerNorm):
                self.step(f"{at} fc_norm, again", "B D")  # its weights are counted already
            self.walk(model.head_dist, f"{at}.head_dist")
            self.step(f"{at} mean of both heads", logits)

    def patch_embedding(self, module: PatchEmbedding, at: str) -> None:
        images, side = self.rows[-1].shape, module.size
        module.check(torch.empty(images, device="meta"))
        h, w = images[2] // side, images[3] // side
        self.letters |= {"h": h, "w": w, "N": h * w, "D": module.proj.out_channels}
        flat = f"{side}*{side}*C"
        cut = "b c (h s1) (w s2) -> b (h w) (s1 s2 c)"
        self.step("patches", f"B N {flat}", einops=cut, made=module.norm_patch is not None)
        if module.norm_patch is None or module.norm is None:
            self.step(f"{at}.proj", "B D h w", module.proj, times=flat)
            self.step(f"{at} tokens", "B N D", einops="b d h w -> b (h w) d", made=False)
        else:
            self.walk(module.norm_patch, f"{at}.norm_patch")
            self.step(f"{at}.proj", "B N D", module.proj, times=flat)
            self.walk(module.norm, f"{at}.norm")

    def embed(self, model: ViT, at: str) -> None:
        config, (h, w) = model.config, (self.letters["h"], self.letters["w"])
        self.letters |= {"P": config.prefix, "d": config.head_width}
        if config.positions == "rope":
            self.step(f"{at} rotations, cos and sin", "2 N d")
        elif config.positions == "sincos":
            self.step(f"{at} positions, sin and cos", "1 N D")
        elif model.pos_embed is not None:
            native = f"{config.grid[0]}*{config.grid[1]}"
            table = f"{config.prefix_positions}+{native}" if config.prefix_positions else native
            self.step(f"{at}.pos_embed", f"1 {table} D", model.pos_embed, made=False)
            if config.grid != (h, w):
                self.step(f"{at} positions, resized to {h} x {w}", "1 N D")
        if config.positions in ("learned", "sincos"):
            self.step(f"{at} patches + positions", "B N D")
        if self.training and model.drop.patches:
            self.letters["N"] = patches_kept(self.letters["N"], model.drop.patches)
            self.step(f"{at} patches kept", "B N D")
        prefix = {"cls": model.cls_token, "dist": model.dist_token, "reg": model.reg_token}
        for name, token in prefix.items():
            if token is not None:
                self.step(f"{at}.{name}_token", f"1 {token.shape[1]} D", token, made=False)
        if config.prefix:
            placed = model.pos_embed is not None and config.prefix_positions > 0
            self.step(f"{at} prefix" + " + positions" * placed, "1 P D")
        self.step(f"{at} tokens", "B P+N D" if config.prefix else "B N D")
        self.walk(model.norm_pre, f"{at}.norm_pre")

    def block(self, block: EncoderBlock, at: str) -> None:
        n = self.tokens(block)
        self.walk(block.norm1, f"{at}.norm1")
        self.attention(block.attn, f"{at}.attn")
        self.walk(block.ls1, f"{at}.ls1")
        self.step(f"{at} residual + attn", f"B {self.read or n} D")
        self.walk(block.norm2, f"{at}.norm2")
        self.feed_forward(block.mlp, f"{at}.mlp")
        self.walk(block.ls2, f"{at}.ls2")
        self.step(f"{at} residual + mlp", f"B {self.read or n} D")

    def attention(self, attn: MultiHeadAttention, at: str) -> None:
        n = self.tokens(attn)
        asks = self.read or n
        self.letters |= {"K": attn.heads, "d": attn.proj.in_features // attn.heads}
        self.step(f"{at}.qkv", f"B {n} 3Kd", attn.qkv, times="D")
        if attn.q_bias is not None and attn.v_bias is not None:
            self.step(f"{at} + q_bias, v_bias", f"B {n} 3Kd", attn.q_bias, attn.v_bias)
        split = "b n (qkv k d) -> qkv b k n d"
        self.step(f"{at} split", f"3 B K {n} d", einops=split, made=False)
        if isinstance(attn.q_norm, nn.LayerNorm):
            self.step(f"{at}.q_norm", f"B K {n} d", attn.q_norm)
            self.step(f"{at}.k_norm", f"B K {n} d", attn.k_norm)
        if self.turned:
            self.step(f"{at} q and k rotated", f"2 B K {n} d")
        self.step(f"{at} scores", f"B K {asks} {n}", times="d", made=False)
        self.step(f"{at} weighted values", f"B K {asks} d", times=n)
        self.step(f"{at} merge", f"B {asks} Kd", einops="b k n d -> b n (k d)", made=False)
        self.step(f"{at}.proj", f"B {asks} D", attn.proj, times="Kd")

    def feed_forward(self, mlp: FeedForward, at: str) -> None:
        n = self.tokens(mlp)
        self.letters["M"] = mlp.fc2.in_features
        name = {f: name for name, f in ACTIVATIONS.items()}.get(mlp.activation, "activation")
        self.step(f"{at}.fc1", f"B {n} 2M" if mlp.gated else f"B {n} M", mlp.fc1, times="D")
        self.step(f"{at} {name}" + " of the gate" * mlp.gated, f"B {n} M")
        if mlp.gated:
            self.step(f"{at} gate * up", f"B {n} M")
        self.step(f"{at}.fc2", f"B {n} D", mlp.fc2, times="M")

    def pool(self, model: ViT, at: str) -> None:
        pooling, prefix = model.config.pooling, model.config.prefix
        if prefix and pooling in ("map", "mean", "cls+mean"):
            self.step(f"{at} tokens without prefix", "B N D", made=False)
        if model.attn_pool is not None:
            self.attention_pooling(model.attn_pool, f"{at}.attn_pool")
        elif pooling == "cls":
            self.step(f"{at} pool: class token", "B D", made=False)
        else:
            self.step(f"{at} pool: mean of tokens", "B D", einops="b n d -> b d")
        if pooling == "cls+mean":
            self.step(f"{at} pool: class token, mean", "B 2D")
        self.walk(model.fc_norm, f"{at}.fc_norm")
        if model.pre_logits is not None:
            self.layer(model.pre_logits, f"{at}.pre_logits")
            self.step(f"{at} tanh", "B D")

    def attention_pooling(self, pool: AttentionPooling, at: str) -> None:
        n = self.tokens(pool)
        self.letters |= {"K": pool.heads, "d": self.letters["D"] // pool.heads}
        self.step(f"{at}.latent", "1 1 D", pool.latent, made=False)
        self.step(f"{at}.q", "B 1 D", pool.q, times="D")
        self.step(f"{at} split q", "B K 1 d", einops="b n (k d) -> b k n d", made=False)
        self.step(f"{at}.kv", f"B {n} 2D", pool.kv, times="D")
        split = "b n (kv k d) -> kv b k n d"
        self.step(f"{at} split k and v", f"2 B K {n} d", einops=split, made=False)
        self.step(f"{at} scores", f"B K 1 {n}", times="d", made=False)
        self.step(f"{at} weighted values", "B K 1 d", times=n)
        self.step(f"{at} merge", "B 1 D", einops="b k n d -> b n (k d)", made=False)
        self.step(f"{at}.proj", "B 1 D", pool.proj, times="D")
        self.walk(pool.norm, f"{at}.norm")
        self.feed_forward(pool.mlp, f"{at}.mlp")
        self.step(f"{at} residual + mlp", "B 1 D")
        self.step(f"{at} pooled", "B D", einops="b 1 d -> b d", made=False)


_KINDS: dict[type[nn.Module], Callable[[_Walk, Any, str], None]] = {
    ViT: _Walk.vit,
    PatchEmbedding: _Walk.patch_embedding,
    MultiHeadAttention: _Walk.attention,
    FeedForward: _Walk.feed_forward,
    EncoderBlock: _Walk.block,
    Encoder: _Walk.each,
    AttentionPooling: _Walk.attention_pooling,
    ClassificationHead: _Walk.layer,
    LayerScale: _Walk.layer,
    nn.Linear: _Walk.layer,
    nn.LayerNorm: _Walk.layer,
    nn.Identity: _Walk.nothing,
    nn.Dropout: _Walk.nothing,
    nn.Sequential: _Walk.each,
}


def _steps(module: nn.Module) -> Callable[[_Walk, Any, str], None]:
    for kind, steps in _KINDS.items():
        if isinstance(module, kind):
            return steps
    known = ", ".join(kind.__name__ for kind in _KINDS)
    raise ConfigError(f"summary cannot walk a {type(module).__name__}; it walks ViTConfig, {known}")


def _width(module: nn.Module) -> int:
    """Give the width that a part reads: the last axis of its first weight that is no bias."""
    if isinstance(module, nn.LayerNorm):  # which may have no weight
        return module.normalized_shape[-1]
    for name, weight in module.named_parameters():
        if not name.endswith("bias"):
            return weight.shape[-1]
    raise ConfigError(f"no weight of {type(module).__name__} tells what it reads; give a size")


def _default_size(module: nn.Module) -> tuple[int, ...]:
    match module:
        case ViT():
            return module.config.channels, *module.config.image_size
        case PatchEmbedding():
            return module.proj.in_channels, 224, 224
        case nn.Sequential() if len(module):
            return _default_size(module[0])
        case MultiHeadAttention() | FeedForward() | EncoderBlock() | Encoder() | AttentionPooling():
            return 197, _width(module)
    return (_width(module),)
