"""The plain Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), top to bottom.

Axes, the same letters everywhere: `B` batch, `C` channels, `H W` image, `h w` patch grid,
`N` tokens, `P` prefix tokens (class, distillation, registers), `D` width, `K` heads, `d` head
width. `x` is the residual stream. Tensor names are timm's, the field's lingua franca.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from vitrail.model import positions
from vitrail.model.checks import check_images, check_layer
from vitrail.model.config import DropRates, ViTConfig
from vitrail.model.initialization import initialize
from vitrail.model.kernels import attend, linear
from vitrail.model.presets import preset


def quick_gelu(x: Tensor) -> Tensor:
    """Give x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class Linear(nn.Linear):
    """A linear layer, ... I to ... O, by the kernel that suits the device (`kernels.py`)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def patches(images: Tensor, size: int) -> Tensor:
    """Cut images, B C H W, into flattened patches, B N (size size C), row by row."""
    return rearrange(images, "b c (h s1) (w s2) -> b (h w) (s1 s2 c)", s1=size, s2=size)


class PatchEmbedding(nn.Module):
    """Project each patch of the images, B C H W, to one token, B N D.

    It is one matrix: a convolution whose stride is its kernel reads each patch once, as does a
    linear layer over the flattened patches. `matrix` gives the second form of the same numbers.
    """

    def __init__(self, config: ViTConfig = ViTConfig()) -> None:
        super().__init__()
        self.size, flat = config.patch_size, config.channels * config.patch_size**2
        self.proj = nn.Conv2d(
            config.channels, config.width, self.size, stride=self.size, bias=config.patch_bias
        )
        self.norm_patch = nn.LayerNorm(flat, config.norm_eps) if config.patch_norms else None
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.patch_norms else None

    @property
    def matrix(self) -> Tensor:
        """The projection as the weight of a linear layer over `patches`: D (s1 s2 C)."""
        return rearrange(self.proj.weight, "d c s1 s2 -> d (s1 s2 c)")

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        if self.norm_patch is None or self.norm is None:
            return rearrange(self.proj(images), "b d h w -> b (h w) d")
        x = self.norm_patch(patches(images, self.size))
        return self.norm(F.linear(x, self.matrix, self.proj.bias))

    def check(self, images: Tensor) -> None:
        """Raise `ConfigError` where these images cannot be cut into this layer's patches."""
        check_images(tuple(images.shape), self.proj.in_channels, self.size)


class MultiHeadAttention(nn.Module):
    """Let every token look at every other, K times over (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: ViTConfig = ViTConfig(), drop: DropRates = DropRates()) -> None:
        super().__init__()
        self.heads, self.drop = config.heads, drop.attention
        inner = config.heads * config.head_width
        self.qkv = Linear(config.width, 3 * inner, bias=config.qkv_bias == "all")
        # DINOv3 has no bias on k: it shifts all scores of a query alike, and softmax ignores it.
        no_key = config.qkv_bias == "no_key"
        self.q_bias = nn.Parameter(torch.zeros(inner)) if no_key else None
        self.v_bias = nn.Parameter(torch.zeros(inner)) if no_key else None
        norm = partial(nn.LayerNorm, config.head_width, config.norm_eps)
        self.q_norm = norm() if config.qk_norm else nn.Identity()
        self.k_norm = norm() if config.qk_norm else nn.Identity()
        self.proj = Linear(inner, config.width, bias=config.proj_bias)

    def split(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Give q, k and v of the tokens, each B K N d, as attention meets them.

        One matrix makes all three: each is a third of its rows, and one product is faster than
        three. Each third then splits into K heads of d, next to each other.
        """
        qkv = self.qkv(x)  # B N 3Kd
        if self.q_bias is not None and self.v_bias is not None:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = rearrange(qkv, "b n (qkv k d) -> qkv b k n d", qkv=3, k=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = positions.rotate(q, rotation), positions.rotate(k, rotation)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Tensor | None = None,
        read: int | None = None,
    ) -> Tensor:
        """Attend over x, B N D; where nobody reads more, for its first `read` tokens: B read D.

        `mask` broadcasts to B K N N, or B K read N, True where a token may look.
        """
        q, k, v = self.split(x, rotation)
        return self.mix(q[:, :, :read], k, v, mask)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each token what it looks for, B N D: the values weighted by softmax(q k^T)."""
        # Scores are divided by the square root of the *head* width d, and before the softmax: the
        # product of two vectors of d unit normals has a standard deviation of sqrt(d). By the
        # square root of the whole width, as in many a tutorial, all tokens look about alike;
        # after the softmax, the rows no longer sum to 1. And the mask must reach the softmax: the
        # blog post's calls a method that does not exist, and would throw its result away.
        x = attend(q, k, v, mask, self.drop if self.training else 0.0)
        return self.proj(rearrange(x, "b k n d -> b n (k d)"))


class FeedForward(nn.Module):
    """Widen each token, bend it, narrow it again: two linear layers, B N D to B N D.

    `swiglu` gates one half of the hidden units by the SiLU of the other (Shazeer 2020).
    """

    def __init__(self, config: ViTConfig = ViTConfig(), drop: DropRates = DropRates()) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        hidden = config.mlp_width * (2 if self.gated else 1)  # gate, then up
        self.fc1 = Linear(config.width, hidden, bias=config.mlp_bias)
        self.activation = F.silu if self.gated else ACTIVATIONS[config.activation]
        self.drop = nn.Dropout(drop.mlp)
        self.fc2 = Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.fc1(x).chunk(2, dim=-1)
            return self.fc2(self.drop(self.activation(gate) * up))
        return self.fc2(self.drop(self.activation(self.fc1(x))))


class LayerScale(nn.Module):
    """Multiply each channel by a learned number that starts small (Touvron et al. 2021, CaiT)."""

    def __init__(self, width: int, start: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class StochasticDepth(nn.Module):
    """Drop a residual branch for some images of the batch (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class EncoderBlock(nn.Module):
    """Attention, then feed-forward, each normalised before and added after, B N D to B N D."""

    def __init__(
        self, config: ViTConfig = ViTConfig(), drop: DropRates = DropRates(), depth_rate: float = 0
    ) -> None:
        super().__init__()
        scale = config.layer_scale
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = MultiHeadAttention(config, drop)
        self.ls1 = nn.Identity() if scale is None else LayerScale(config.width, scale)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = FeedForward(config, drop)
        self.ls2 = nn.Identity() if scale is None else LayerScale(config.width, scale)
        self.drop = nn.Sequential(nn.Dropout(drop.residual), StochasticDepth(depth_rate))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Tensor | None = None,
        read: int | None = None,
    ) -> Tensor:
        """Run the block over x, B N D; where nobody reads more, give its first `read` tokens."""
        # `x = x + ...`, never `x += ...`: adding in place would change the caller's tensor, and
        # the one that the normalisation kept for its backward pass.
        seen = self.attn(self.norm1(x), mask, rotation, read)
        x = x[:, :read] + self.drop(self.ls1(seen))
        return x + self.drop(self.ls2(self.mlp(self.norm2(x))))


class Encoder(nn.ModuleList):
    """The blocks, one after the other; what is dropped of a branch rises with its depth."""

    def __init__(self, config: ViTConfig = ViTConfig(), drop: DropRates = DropRates()) -> None:
        rates = torch.linspace(0, drop.stochastic_depth, config.depth, device="cpu").tolist()
        super().__init__(EncoderBlock(config, drop, rate) for rate in rates)

    def __getitem__(self, index: Any) -> Any:
        """Give a block, or of a slice an encoder of those blocks: `model.blocks[:6](x)`."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        part = type(self).__new__(type(self))  # `nn.ModuleList` would hand blocks to `__init__`
        nn.ModuleList.__init__(part, [*self][index])
        return part

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Tensor | None = None,
        read: int | None = None,
    ) -> Tensor:
        """Run the blocks over x, B N D; where nobody reads more, give its first `read` tokens."""
        for i, block in enumerate(self, start=1):
            x = block(x, mask, rotation, read if i == len(self) else None)
        return x


class AttentionPooling(nn.Module):
    """Pool tokens, B N D to B D, by one learned query (MAP: Lee et al. 2019; Zhai et al. 2022)."""

    def __init__(self, config: ViTConfig = ViTConfig()) -> None:
        super().__init__()
        self.heads = config.heads
        self.latent = _table(1, config.width)
        self.q = Linear(config.width, config.width)
        self.kv = Linear(config.width, 2 * config.width)
        self.proj = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = FeedForward(config)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the one q, B K 1 d, and k and v of the tokens, B K N d, as attention meets them."""
        latent = self.latent.expand(x.shape[0], -1, -1)
        q = rearrange(self.q(latent), "b n (k d) -> b k n d", k=self.heads)
        k, v = rearrange(self.kv(x), "b n (kv k d) -> kv b k n d", kv=2, k=self.heads)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        x = self.proj(rearrange(attend(q, k, v), "b k n d -> b n (k d)"))
        x = x + self.mlp(self.norm(x))
        return rearrange(x, "b 1 d -> b d")


class ClassificationHead(nn.Linear):
    """Turn pooled features, B D, into one logit for each class: the last matrix of the model.

    What many call the head, mean, norm and this matrix, is `ViT.pool` and then this.
    """

    def __init__(self, config: ViTConfig = ViTConfig()) -> None:
        width = config.width if config.pre_logits else config.features
        super().__init__(width, config.classes, bias=config.head_bias)


class Tokens(NamedTuple):
    """What the encoder gives: `prefix` B P D, `patches` B N D and their `grid` (h, w)."""

    prefix: Tensor
    patches: Tensor
    grid: tuple[int, int]


class ViT(nn.Module):
    """The plain Vision Transformer that `config` describes; `ViT()` is ViT-B/16.

    `drop` is for training alone. Any image size that the patch divides runs: positions are
    resized by the config's own rule, and no batch size is built in.
    """

    def __init__(self, config: ViTConfig = ViTConfig(), drop: DropRates = DropRates()) -> None:
        super().__init__()
        self.config, self.drop = config, drop
        norm = partial(nn.LayerNorm, eps=config.norm_eps)
        width = config.width

        self.patch_embed = PatchEmbedding(config)
        self.cls_token = _table(1, width) if config.class_token else None
        self.dist_token = _table(1, width) if config.distillation_token else None
        self.reg_token = _table(config.registers, width) if config.registers else None
        self.pos_embed = None
        if config.positions == "learned":
            rows = config.prefix_positions + config.grid[0] * config.grid[1]
            self.pos_embed = _table(rows, width)
        self.norm_pre = norm(width) if config.pre_norm else nn.Identity()
        self.blocks = Encoder(config, drop)
        self.norm = norm(width) if config.final_norm == "tokens" else nn.Identity()
        self.attn_pool = AttentionPooling(config) if config.pooling == "map" else None
        pooled = config.final_norm == "pooled"
        self.fc_norm = norm(config.features) if pooled else nn.Identity()
        self.pre_logits = nn.Linear(config.features, width) if config.pre_logits else None
        self.head = ClassificationHead(config) if config.classes else nn.Identity()
        self.head_dist = None
        if config.distillation_token:
            self.head_dist = ClassificationHead(config) if config.classes else nn.Identity()
        initialize(self, config)

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits, B classes, of images, B C H W; pooled features where classes = 0."""
        return self.logits_alone(images) if self.training else self.logits(self.tokens(images))

    def logits_alone(self, images: Tensor) -> Tensor:
        """Give the logits, up to rounding, without the tokens that the head does not read.

        A head on the class token reads no patches: the last block looks at them, and nothing is
        made of them, which is a sixteenth of the work of 12 blocks and an eighth of that of 6.
        Training and engines run this. Who has hooks in the last block is given every token.
        """
        x, rotation, grid = self.embed(images)
        read = self.config.prefix if self.config.pooling == "cls" and not self._watched() else None
        return self.logits(self.finish(self.blocks(x, rotation=rotation, read=read), grid))

    def logits(self, tokens: Tokens) -> Tensor:
        """Give the logits, B classes, of the encoder's tokens."""
        logits = self.head(self.pool(tokens))
        if self.head_dist is None:
            return logits
        # DeiT (Touvron et al. 2021, section 4): the two classifiers' mean at inference.
        return (logits + self.distilled(tokens)) / 2

    @overload
    def tokens(self, images: Tensor, layers: None = None) -> Tokens: ...
    @overload
    def tokens(self, images: Tensor, layers: Sequence[int]) -> list[Tokens]: ...
    def tokens(self, images: Tensor, layers: Sequence[int] | None = None) -> Tokens | list[Tokens]:
        """Give the encoder's tokens, after the final norm where it comes before pooling.

        With `layers` (0 the first block, -1 the last) a list of them, one for each block asked
        for: the model as a backbone. Raises `ConfigError` for a block that does not exist.
        """
        if layers is None:
            x, rotation, grid = self.embed(images)
            return self.finish(self.blocks(x, rotation=rotation), grid)
        depth = self.config.depth
        for layer in layers:
            check_layer(layer, depth)
        # No block runs beyond the last one asked for, and no other block's tokens are kept.
        wanted = [layer % depth for layer in layers]
        x, rotation, grid = self.embed(images)
        after = {}
        for i, block in zip(range(max(wanted, default=-1) + 1), self.blocks, strict=False):
            x = block(x, rotation=rotation)
            if i in wanted:
                after[i] = self.finish(x, grid)
        return [after[i] for i in wanted]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Give what enters the first block: tokens B P+N D, rotations for rope, and the grid."""
        config, size = self.config, self.config.patch_size
        # Under autocast the stream stays in the precision of the weights.
        x = self.patch_embed(images).to(self.patch_embed.proj.weight.dtype)
        grid = (images.shape[2] // size, images.shape[3] // size)
        prefix: list[Tensor] = [
            t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None
        ]
        start = torch.cat(prefix, dim=1) if prefix else None  # 1 P D

        rotation = None
        if self.pos_embed is not None:
            rows = config.prefix_positions
            table = self.pos_embed[:, rows:]
            x = x + positions.resize(table, config.grid, grid, config.position_resize)
            # The first `rows` prefix tokens have a position; registers, for example, have none.
            if start is not None:
                start = start + F.pad(self.pos_embed[:, :rows], (0, 0, 0, config.prefix - rows))
        elif config.positions == "sincos":
            x = x + positions.sincos(grid, config.width, x.device).to(x.dtype)
        elif config.positions == "rope":
            rotation = positions.rope(grid, config.head_width, config.rope_base, x.device)

        if self.training and self.drop.patches:
            x, rotation = _drop_patches(x, rotation, self.drop.patches)
        if start is not None:
            x = torch.cat([start.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm_pre(x), rotation, grid

    def pool(self, tokens: Tokens) -> Tensor:
        """Give the features, B D (B 2D for cls+mean), that the head reads."""
        prefix, x, _ = tokens
        if self.attn_pool is not None:
            pooled = self.attn_pool(x)
        elif self.config.pooling == "mean_all":  # the blog's: over the class token too
            pooled = reduce(torch.cat([prefix, x], dim=1), "b n d -> b d", "mean")
        elif self.config.pooling == "mean":
            pooled = reduce(x, "b n d -> b d", "mean")
        elif self.config.pooling == "cls":
            pooled = prefix[:, 0]
        else:
            pooled = torch.cat([prefix[:, 0], reduce(x, "b n d -> b d", "mean")], dim=-1)
        pooled = self.fc_norm(pooled)
        return pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))

    def distilled(self, tokens: Tokens) -> Tensor:
        """Give the logits, B classes, of the distillation token, which has its own classifier."""
        assert self.head_dist is not None
        return self.head_dist(self.fc_norm(tokens.prefix[:, 1]))

    def _watched(self) -> bool:
        """Say whether a hook is called with what a part of the last block, or the norm, gives."""
        parts = [part for block in [*self.blocks][-1:] for part in block.modules()]
        hooks = [hook for part in (*parts, self.norm) for hook in part._forward_hooks.values()]
        # torch's own, of a model in pieces on several devices, read no tokens.
        return any(not hook.__module__.startswith("torch.") for hook in hooks)

    def finish(self, x: Tensor, grid: tuple[int, int]) -> Tokens:
        """Give what leaves a block, B P+N D, as tokens after the final norm."""
        x = self.norm(x)
        return Tokens(x[:, : self.config.prefix], x[:, self.config.prefix :], grid)


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, rows, width))


def patches_kept(patches: int, rate: float) -> int:
    """Give how many patches of an image are left where a share of them, `rate`, is dropped."""
    return max(round(patches * (1 - rate)), 1)


def _drop_patches(x: Tensor, rotation: Tensor | None, rate: float) -> tuple[Tensor, Tensor | None]:
    """Keep a random share 1 - rate of each image's patches, B N D, and of their rotations."""
    keep = patches_kept(x.shape[1], rate)
    kept = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)[:, :keep]  # B N'
    if rotation is not None:
        rotation = rearrange(rotation[:, kept], "two b n d -> two b 1 n d")
    return x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])), rotation


def create(name: str, *, seed: int = 0, **config: Any) -> ViT:
    """Build the preset `name` with random weights; keywords are `ViTConfig` fields.

    The same seed gives the same weights, and torch's own generator is left as it was.
    Raises `ConfigError` for an unknown preset or field, or sizes that do not fit.
    """
    return seeded(preset(name).replace(**config), seed=seed)


def seeded(config: ViTConfig, *, seed: int, drop: DropRates = DropRates()) -> ViT:
    """Build a ViT whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(config, drop)
