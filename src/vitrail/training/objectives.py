"""What is minimised: small classes that turn a batch into a loss."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.model.vit import ViT
from vitrail.training.recipe import Objective as Settings
from vitrail.weights.bundle import Bundle


class Loss(NamedTuple):
    """The mean loss of a batch, and how many of its images were classified right."""

    mean: Tensor
    right: Tensor


class Objective(Protocol):
    """What the learner asks for: `module` is what it trains, and `loss` calls just that."""

    def module(self, model: ViT) -> nn.Module: ...
    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Loss: ...


class Classify:
    """Cross-entropy against labels, softened (Szegedy et al. 2016, section 7), or mixed.

    Or one yes or no for each class (`bce`: Beyer et al. 2020; DeiT III). With `counts`, the images
    of each class, an image weighs as much as its class is rare.
    """

    def __init__(self, settings: Settings, counts: np.ndarray | None = None) -> None:
        self.kind, self.smoothing = settings.loss, settings.label_smoothing
        self.weights = None
        if settings.class_weights == "balanced" and counts is not None:
            present = np.maximum(counts, 1)
            self.weights = torch.from_numpy(counts.sum() / (len(counts) * present)).float()

    def module(self, model: ViT) -> nn.Module:
        """Give what is trained: the model itself."""
        return model

    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Loss:
        """Give the loss of images, B C H W, with labels, B, or shares of classes, B classes."""
        logits = module(images).float()  # B classes; softmax in full precision
        return Loss(self.of_logits(logits, targets), right(logits, targets))

    def of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Give the mean loss of logits, B classes."""
        if self.kind == "cross_entropy" and self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        classes = logits.shape[1]
        shares = targets if targets.is_floating_point() else F.one_hot(targets, classes).float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.kind == "cross_entropy":  # of shares the mean is over images, not over weights
            return F.cross_entropy(logits, shares, weights, label_smoothing=self.smoothing)
        soft = shares * (1 - self.smoothing) + self.smoothing / classes
        each = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        if weights is not None:
            each = each * (shares @ weights)[:, None]
        # timm and DeiT III take the mean over classes, big_vision their sum.
        return each.mean() if self.kind == "bce" else each.sum(dim=1).mean()


class Distill:
    """Labels, and beside them the answers of a teacher.

    Soft: the teacher's probabilities at a temperature (Hinton et al. 2015, section 2). Hard: its
    likeliest class as a second label (DeiT: Touvron et al. 2021, section 4). A model with a
    distillation token learns the labels by its class token and the teacher's answers by the other.
    """

    def __init__(self, settings: Settings, labels: Classify, teacher: "Teacher") -> None:
        self.settings, self.labels, self.teacher = settings, labels, teacher

    def module(self, model: ViT) -> nn.Module:
        """Give what is trained: both classifiers apart, where the model has two."""
        return model if model.head_dist is None else TwoHeads(model)

    def loss(self, module: nn.Module, images: Tensor, targets: Tensor) -> Loss:
        """Give the loss of images, B C H W, with labels, B, or shares of classes, B classes."""
        answers = module(images)
        own, taught = answers if isinstance(answers, tuple) else (answers, answers)
        own, taught, wanted = own.float(), taught.float(), self.teacher(images)
        share = self.settings.teacher_share
        learned = self._of_teacher(taught, wanted)
        mean = (1 - share) * self.labels.of_logits(own, targets) + share * learned
        return Loss(mean, right((own + taught) / 2, targets))

    def _of_teacher(self, logits: Tensor, wanted: Tensor) -> Tensor:
        if self.settings.distillation == "hard":
            return F.cross_entropy(logits, wanted.argmax(dim=1))
        heat = self.settings.temperature
        ours, theirs = (F.log_softmax(x / heat, dim=1) for x in (logits, wanted))
        # Gradients shrink with the square of the temperature, which is put back.
        return heat**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class TwoHeads(nn.Module):
    """A ViT with a distillation token: the logits of both its classifiers, B classes each."""

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.tokens(images)
        return self.model.head(self.model.pool(tokens)), self.model.distilled(tokens)


class Teacher:
    """A bundle that answers for the student's images, in the order of the student's classes."""

    def __init__(
        self,
        bundle: Bundle,
        labels: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        lacking = [name for name in labels if name not in bundle.labels]
        if lacking:
            raise ConfigError(
                f"the teacher does not know the classes {', '.join(lacking[:5])}; it knows "
                f"{', '.join(bundle.labels[:5])}{' ...' * (len(bundle.labels) > 5)}"
            )
        self.model = bundle.model.eval().requires_grad_(False)
        self.places = torch.tensor([bundle.labels.index(name) for name in labels])
        # From the student's normalisation to the teacher's: x * scale + shift.
        own_mean, own_std, its_mean, its_std = (
            torch.tensor(values).view(1, -1, 1, 1)
            for values in (mean, std, bundle.preprocess.mean, bundle.preprocess.std)
        )
        self.scale, self.shift = own_std / its_std, (own_mean - its_mean) / its_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Give the logits, B classes, for normalised images, B C H W."""
        device = images.device
        self.model.to(device)
        scaled = images * self.scale.to(device) + self.shift.to(device)
        return self.model(scaled).float()[:, self.places.to(device)]


def right(logits: Tensor, targets: Tensor) -> Tensor:
    """Count the images whose likeliest class is the target's, or the largest share of it."""
    labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
    return (logits.argmax(dim=1) == labels).sum()
