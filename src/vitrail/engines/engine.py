"""What an engine is."""

from typing import Protocol

import torch
from torch import Tensor

from vitrail.data.aspect import OwnAspect
from vitrail.data.preprocess import Preprocess


class Engine(Protocol):
    """What executes a model: `run` gives logits, B classes in float32, for images, B C H W.

    uint8 images are pixels as `Preprocess.pixels` gives them; others are normalised already.
    """

    reason: str  # why `auto` chose it; nothing where it was named

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def preprocess(self) -> Preprocess | OwnAspect: ...
    def run(self, images: Tensor) -> Tensor: ...
