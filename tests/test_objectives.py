"""The loss of one label an image, and of images that have a share of several."""

import pytest
import torch
import torch.nn.functional as F

from vitrail.training.objectives import Classify
from vitrail.training.recipe import Objective


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_whole_shares_are_the_same_as_labels(smoothing: float) -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    classify = Classify(Objective(label_smoothing=smoothing))

    hard = classify.loss(torch.nn.Identity(), logits, labels)
    soft = classify.loss(torch.nn.Identity(), logits, F.one_hot(labels, 4).float())

    assert torch.equal(hard.mean, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    torch.testing.assert_close(soft.mean, hard.mean)
    assert int(soft.right) == int(hard.right) == int((logits.argmax(dim=1) == labels).sum())


def test_a_mixed_image_costs_the_mean_of_both_labels_and_counts_by_the_larger() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.3, 0.7, 0.0]])

    loss = Classify(Objective()).loss(torch.nn.Identity(), logits, targets)

    logs = logits[0].log_softmax(dim=0)
    torch.testing.assert_close(loss.mean, -(logs[0] + logs[1]) / 2)
    assert int(loss.right) == 1
