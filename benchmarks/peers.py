"""The plain ViT of each library at the same sizes, for the scripts beside this one.

Weights are random: speed does not depend on them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrail.model.config import ViTConfig
from vitrail.model.presets import preset
from vitrail.model.vit import ViT

# torchvision's compiled part does not load beside CPU torch. Its Python part, which the others
# import, asks for two of its operators by name.
for _operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _operator):
        torch.library.define(f"torchvision::{_operator}", "(Tensor a, Tensor b, float c) -> Tensor")


class Size(NamedTuple):
    """A ViT and the number of images that it is given at once."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    classes: int = 1000

    @property
    def config(self) -> ViTConfig:
        return preset("vit-b16").replace(
            image_size=(self.image, self.image),
            patch_size=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            classes=self.classes,
        )


SIZES = {
    "S/16": Size(224, 16, 384, 12, 6),
    "B/16": Size(224, 16, 768, 12, 12),
    "C6/4": Size(32, 4, 192, 6, 3, 10),  # a small model for small images: 32 pixels, 6 blocks
}


def ours(size: Size) -> ViT:
    return ViT(size.config)


def timm(size: Size) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size.image,
        patch_size=size.patch,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=size.classes,
    )


def transformers(size: Size) -> nn.Module:
    from transformers import ViTConfig as Config
    from transformers import ViTForImageClassification

    build: Any = Config  # its keywords are not declared
    config = build(
        image_size=size.image,
        patch_size=size.patch,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        num_labels=size.classes,
    )
    return Logits(ViTForImageClassification(config))


def torchvision(size: Size) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer  # type: ignore[import]

    return VisionTransformer(
        size.image, size.patch, size.depth, size.heads, size.width, 4 * size.width,
        num_classes=size.classes,
    )  # fmt: skip


def vit_pytorch(size: Size) -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=size.image,
        patch_size=size.patch,
        dim=size.width,
        depth=size.depth,
        heads=size.heads,
        dim_head=size.width // size.heads,
        mlp_dim=4 * size.width,
        num_classes=size.classes,
    )


PEERS: dict[str, Callable[[Size], nn.Module]] = {
    "timm": timm,
    "transformers": transformers,
    "torchvision": torchvision,
    "vit-pytorch": vit_pytorch,
}


class Logits(nn.Module):
    """A model of transformers that gives its logits alone, as the others do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits
