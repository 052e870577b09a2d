"""What is minimised: small classes that turn a batch into a loss."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.training.recipe import Objective


class Loss(NamedTuple):
    """The mean loss of a batch, and how many of its images were classified right."""

    mean: Tensor
    right: Tensor


class Classify:
    """Cross-entropy against labels, softened (Szegedy et al. 2016, section 7), or mixed."""

    def __init__(self, settings: Objective) -> None:
        self.smoothing = settings.label_smoothing

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Loss:
        """Give the loss of images, B C H W, with labels, B, or shares of classes, B classes."""
        logits = model(images).float()  # B classes; softmax in full precision
        mean = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
        return Loss(mean, (logits.argmax(dim=1) == labels).sum())
