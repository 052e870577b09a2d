"""Boxes of pixels: to erase, to cut out, to paste."""

import torch
from torch import Tensor


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Say which pixels, B H W, lie in their image's box, B 4: top, left, bottom, right."""
    top, left, bottom, right = boxes[:, :, None].unbind(dim=1)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    tall = (rows >= top) & (rows < bottom)
    wide = (columns >= left) & (columns < right)
    return tall[:, :, None] & wide[:, None, :]
