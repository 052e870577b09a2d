"""The module that a file holds: the model, with or without what is done to pixels before it."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from vitrail.engines.compiled import logits_alone
from vitrail.engines.exported import Exported
from vitrail.exporting.any_size import at_any_size
from vitrail.model.vit import ViT


class Graph(NamedTuple):
    """What an exporter is given: a module, an example of its input, the axes that are free."""

    module: nn.Module
    example: Tensor
    dynamic: dict[int, Any]
    facts: Exported


def graph_of(model: ViT, facts: Exported) -> Graph:
    """Give the model as the file that `facts` describe computes it."""
    config = facts.config
    module: nn.Module = logits_alone(at_any_size(model) if facts.any_size else model)
    if facts.dtype == "bfloat16":
        module = InBfloat16(module)
    if facts.takes == "pixels":
        module = FromPixels(module, facts)
    # 2: what is 1 in the example would be 1 for ever.
    example = torch.zeros(2, config.channels, *config.image_size)
    sides = {2: "rows", 3: "columns"}
    if facts.any_size:  # at least two patches each way: torch takes an axis of 1 for one by itself
        patches = [max(n, 2) for n in config.grid]
        example = torch.zeros(2, config.channels, *(n * config.patch_size for n in patches))
    if facts.takes == "pixels":
        example, sides = (
            example.permute(0, 2, 3, 1).contiguous().to(torch.uint8),
            {1: "rows", 2: "columns"},
        )
    dynamic: dict[int, Any] = {0: Dim("batch")}
    if facts.any_size:
        # 10,000 patches a side: an axis that is free needs an end, and no image comes near it.
        dynamic |= {axis: config.patch_size * Dim(name, max=10_000) for axis, name in sides.items()}
    return Graph(module.eval(), example, dynamic, facts)


class FromPixels(nn.Module):
    """uint8 pixels, B H W C, to probabilities and logits, B classes; or to features alone.

    They have the model's size already: to resize a photo as torch and Pillow do, rounded to bytes,
    is no operator of ONNX, and what is a little off there would be off in every answer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, facts: Exported) -> None:
        super().__init__()
        self.model, self.has_classes = model, facts.config.classes > 0
        for name in ("mean", "std"):
            values = torch.tensor(getattr(facts.preprocess, name))
            self.register_buffer(name, values.view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = pixels.permute(0, 3, 1, 2).float() / 255
        logits = self.model((images - self.mean) / self.std)
        return (logits.softmax(dim=1), logits) if self.has_classes else logits


class InBfloat16(nn.Module):
    """A model with weights and arithmetic in bfloat16; what goes in and out is float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(torch.bfloat16)).float()
