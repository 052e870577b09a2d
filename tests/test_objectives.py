"""The loss of one label an image, and of images that have a share of several."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitrail.data.preprocess import Preprocess
from vitrail.errors import ConfigError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import seeded
from vitrail.training.objectives import Classify, Distill, Teacher
from vitrail.training.recipe import Objective
from vitrail.weights.bundle import Bundle


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["bce", "bce_sum"])
def test_yes_or_no_for_each_class_is_timm_s_mean_or_big_vision_s_sum(
    loss: Any, smoothing: float
) -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    objective = Classify(Objective(loss=loss, label_smoothing=smoothing))
    wanted = torch.full((6, 4), smoothing / 4)
    wanted[torch.arange(6), labels] += 1 - smoothing

    found = objective.of_logits(logits, labels)

    each = -(wanted * F.logsigmoid(logits) + (1 - wanted) * F.logsigmoid(-logits))
    torch.testing.assert_close(found, each.mean() * (1 if loss == "bce" else 4))
    torch.testing.assert_close(objective.of_logits(logits, F.one_hot(labels, 4).float()), found)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_balanced_classes_weigh_the_same_together(loss: Any) -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    counts = np.array([6, 2, 1])
    logits = torch.zeros(9, 3)  # every image costs the same
    balanced = Classify(Objective(loss=loss, class_weights="balanced"), counts)
    plain = Classify(Objective(loss=loss))

    shares = [
        float(balanced.of_logits(logits[labels == c], labels[labels == c])) * (labels == c).sum()
        for c in range(3)
    ]

    assert shares == pytest.approx([float(shares[0])] * 3)
    torch.testing.assert_close(balanced.of_logits(logits, labels), plain.of_logits(logits, labels))
    assert Classify(Objective(class_weights="balanced"), np.array([3, 0])).weights is not None


TINY = ViTConfig(image_size=(8, 8), patch_size=4, classes=3, width=16, depth=1, heads=2)
NAMES = ("a", "b", "c")


def teacher(labels: tuple[str, ...] = NAMES, **changes: Any) -> Bundle:
    preprocess = Preprocess(size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    config = TINY.replace(classes=len(labels), **changes)
    return Bundle(model=seeded(config, seed=7), preprocess=preprocess, labels=labels)


def distill(bundle: Bundle, **settings: Any) -> Distill:
    how = Objective(name="distill", teacher="teacher", **settings)
    return Distill(how, Classify(how), Teacher(bundle, NAMES, (0.5,) * 3, (0.5,) * 3))


def test_a_teacher_sees_its_own_normalisation_and_answers_in_the_student_s_order() -> None:
    bundle = teacher(("c", "x", "a", "b"))
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    student = Preprocess(size=(8, 8))

    answers = Teacher(bundle, NAMES, student.mean, student.std)(student.normalize(pixels))

    wanted = bundle.model(bundle.preprocess.normalize(pixels))[:, [2, 3, 0]]
    torch.testing.assert_close(answers, wanted)
    assert not answers.requires_grad
    with pytest.raises(ConfigError, match="teacher does not know the classes c"):
        Teacher(teacher(("a", "b")), NAMES, student.mean, student.std)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("token", [False, True])
def test_a_student_learns_labels_and_its_teacher(kind: Any, token: bool) -> None:
    objective = distill(teacher(), distillation=kind, teacher_share=0.25, temperature=2.0)
    student = seeded(TINY.replace(distillation_token=token), seed=1)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    theirs = objective.teacher(images)

    module = objective.module(student)
    found = objective.loss(module, images, labels)

    out = module(images)
    own, taught = out if token else (out, out)
    if kind == "hard":
        learned = F.cross_entropy(taught, theirs.argmax(dim=1))
    else:
        p = (theirs / 2).softmax(dim=1)
        learned = 4 * (p * (p.log() - (taught / 2).log_softmax(dim=1))).sum(dim=1).mean()
    torch.testing.assert_close(found.mean, 0.75 * F.cross_entropy(own, labels) + 0.25 * learned)
    if token:
        torch.testing.assert_close((own + taught) / 2, student(images))
    found.mean.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in objective.teacher.model.parameters())


def test_distillation_and_a_teacher_need_each_other() -> None:
    cases: list[dict[str, Any]] = [{"name": "distill"}, {"teacher": "runs/digits-1"}]
    for settings in cases:
        with pytest.raises(ConfigError, match="distill needs a teacher"):
            Objective(**settings)
