"""`ViTConfig`: what a checkpoint needs to be read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Literal

from vitrail.errors import ConfigError, check_names, check_range, check_types
from vitrail.model.checks import check_gate, check_heads, check_sizes, check_tokens

MLP = Literal["plain", "swiglu"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
QKVBias = Literal["all", "no_key", "none"]
Positions = Literal["learned", "sincos", "rope", "none"]
FinalNorm = Literal["tokens", "pooled", "none"]
Pooling = Literal["cls", "mean", "mean_all", "map", "cls+mean"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionResize:
    """How a position table is read at another grid than its own; the default is timm's rule."""

    mode: Interpolation = "bicubic"
    antialias: bool = True  # timm, open_clip, DINOv2 with registers; DeiT, MAE, Hugging Face: no
    align_corners: bool = False  # torchvision and the first JAX ViT: yes
    offset: float = 0.0  # DINO and DINOv2 scale by (grid + 0.1) / table

    def __post_init__(self) -> None:
        check_types(self)
        if self.antialias and self.align_corners:
            raise ConfigError(
                "position_resize cannot have both antialias and align_corners; "
                "no checkpoint does: set one of them to false"
            )

    def __str__(self) -> str:
        flags = [name for name in ("antialias", "align_corners") if getattr(self, name)]
        return ", ".join([self.mode, *flags, *([f"offset {self.offset:g}"] if self.offset else [])])


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """What a checkpoint needs to be read: every field changes a weight's shape or the arithmetic.

    The default is ViT-B/16 at 224 pixels (Dosovitskiy et al. 2021, table 1). Make variants with
    `config.replace(width=192, heads=3)`: `head_width` and `mlp_width` then follow where they
    followed before. Raises `ConfigError` for any combination that cannot be built.
    """

    image_size: tuple[int, int] = (224, 224)  # H, W
    patch_size: int = 16
    channels: int = 3
    classes: int = 1000  # 0: no head, the model gives pooled features
    width: int = 768
    depth: int = 12
    heads: int = 12
    head_width: int = 0  # 0 stands for width // heads; vit-pytorch's files have their own
    mlp_width: int = 0  # 0 stands for 4 width
    mlp: MLP = "plain"  # DINOv2 g and DINOv3 S+, H+, 7B: swiglu
    activation: Activation = "gelu"  # JAX: gelu_tanh; OpenAI's CLIP: quick_gelu; swiglu has silu
    norm_eps: float = 1e-6  # JAX, timm and DINO say 1e-6; CLIP and DINOv3 1e-5; HF's ViT 1e-12
    qkv_bias: QKVBias = "all"  # DINOv3: no_key
    patch_bias: bool = True  # CLIP has none
    patch_norms: bool = False  # vit-pytorch normalises a patch before and after its projection
    proj_bias: bool = True
    mlp_bias: bool = True
    head_bias: bool = True  # CLIP's projection has none
    qk_norm: bool = False  # ViT-22B (Dehghani et al. 2023, section 2)
    layer_scale: float | None = None  # its first value; DeiT-III 1e-6, DINOv2 and v3 1e-5
    class_token: bool = True
    distillation_token: bool = False  # DeiT (Touvron et al. 2021)
    registers: int = 0  # Darcet et al. 2024
    positions: Positions = "learned"
    prefix_positions: int = 1  # first prefix tokens with a position of their own; DeiT-III: 0
    position_resize: PositionResize = field(default_factory=PositionResize)
    rope_base: float = 100.0  # DINOv3
    pre_norm: bool = False  # CLIP normalises before the first block
    final_norm: FinalNorm = "tokens"  # before pooling; MAE fine-tuned: pooled, after it
    pooling: Pooling = "cls"  # SigLIP: map; the blog: mean_all; DINOv2's classifier: cls+mean
    pre_logits: bool = False  # the first ViT's tanh layer before the head, as wide as the width

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "width heads", 1)
        if self.head_width == 0:
            check_heads(self.width, self.heads)
        for name, value in _followers(self).items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if self.mlp == "swiglu":
            check_gate(self.activation)
            object.__setattr__(self, "activation", "silu")
        check_sizes(self)
        check_tokens(self)

    def replace(self, **changes: Any) -> "ViTConfig":
        """Give a variant; a head or MLP width that followed from `width` follows it again."""
        for name, value in _followers(self).items():
            if getattr(self, name) == value:
                changes.setdefault(name, 0)
        if self.mlp == "swiglu" and changes.get("mlp") == "plain":
            changes.setdefault("activation", "gelu")
        return dataclass_replace(self, **read_fields(changes))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across, (h, w), at the native image size."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class, distillation, registers, in this order."""
        return self.class_token + self.distillation_token + self.registers

    @property
    def features(self) -> int:
        """Width of the pooled features."""
        return 2 * self.width if self.pooling == "cls+mean" else self.width

    def to_json(self) -> dict[str, Any]:
        """Give the config as plain values, as `config.json` stores it."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ViTConfig":
        """Read what `to_json` gave; an unknown name or a wrong type is a `ConfigError`."""
        return cls(**read_fields(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class DropRates:
    """What training leaves out at random; never part of a checkpoint, and nothing at inference."""

    attention: float = 0.0  # of the attention weights
    mlp: float = 0.0  # of the hidden units of the feed-forward layer
    residual: float = 0.0  # of each branch's output, before it is added
    stochastic_depth: float = 0.0  # of whole branches: the last block's rate, rising from 0
    patches: float = 0.0  # of the patches, before the first block (Liu et al. 2023, PatchDropout)

    def __post_init__(self) -> None:
        check_types(self)
        for f in fields(self):
            if not 0 <= getattr(self, f.name) < 1:
                raise ConfigError(
                    f"dropout {f.name} is {getattr(self, f.name)}; it should be from 0 to below 1"
                )


def _followers(config: ViTConfig) -> dict[str, int]:
    """Give the values of the fields that follow from others unless they are given."""
    return {"head_width": config.width // config.heads, "mlp_width": 4 * config.width}


def read_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists and tables into the tuple and the dataclass that the fields hold.

    Raises `ConfigError` for a name that is no field.
    """
    read = dict(values)
    check_names(read, [f.name for f in fields(ViTConfig)], "ViTConfig")
    if isinstance(read.get("image_size"), list):
        read["image_size"] = tuple(read["image_size"])
    table = read.get("position_resize")
    if isinstance(table, Mapping):
        check_names(table, [f.name for f in fields(PositionResize)], "position_resize")
        read["position_resize"] = PositionResize(**table)
    return read
