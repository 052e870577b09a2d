"""LAMB: the numbers of timm's, over many steps, and what it does where there is no length."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.training.lamb import Lamb

SHAPES = [(24, 72), (9, 24), (24, 3, 8, 8), (72,), (1, 5, 24), (1,)]


def groups(tensors: list[Tensor]) -> list[dict[str, Any]]:
    """Two rates and two decays, one group without decay."""
    return [
        {"params": tensors[:2], "lr": 3e-3, "weight_decay": 0.05},
        {"params": tensors[2:3], "lr": 1e-3, "weight_decay": 0.2},
        {"params": tensors[3:], "lr": 3e-3, "weight_decay": 0.0},
    ]


def steps_of_both(timm: ModuleType, clip: float | None) -> tuple[list[Tensor], list[Tensor]]:
    """Give tensors after 50 steps of ours, and after those of timm's, with the same gradients."""
    from timm.optim.lamb import Lamb as Theirs

    ours = [nn.Parameter(0.1 * torch.randn(shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = Lamb(groups(list(ours)), betas=(0.9, 0.999), eps=1e-8)
    reference = Theirs(groups(list(theirs)), eps=1e-8, max_grad_norm=clip, foreach=False)
    for step in range(50):
        for group, other in zip(mine.param_groups, reference.param_groups, strict=True):
            group["lr"] = other["lr"] = other["lr"] * 0.97
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a) * (1 + step % 3)
            b.grad = a.grad.clone()
        if clip is not None:
            nn.utils.clip_grad_norm_(ours, clip)
        mine.step()
        reference.step()
    return [p.detach() for p in ours], [p.detach() for p in theirs]


def test_lamb_is_timm_s_bit_for_bit(timm: ModuleType) -> None:
    ours, theirs = steps_of_both(timm, clip=None)

    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_lamb_after_the_recipe_s_clip_is_timm_s_with_its_own(timm: ModuleType) -> None:
    ours, theirs = steps_of_both(timm, clip=1.0)

    for a, b in zip(ours, theirs, strict=True):
        # torch's clipping adds 1e-6 to the norm, timm's does not; here the norm is 40 and more.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_the_first_step_is_as_long_as_the_rate_s_share_of_the_weights() -> None:
    weight = nn.Parameter(torch.randn(7, 5))
    before = weight.detach().clone()
    weight.grad = torch.randn(7, 5)

    Lamb(
        [{"params": [weight], "lr": 0.25, "weight_decay": 0.1}], betas=(0.9, 0.999), eps=1e-8
    ).step()

    # After one step Adam's quotient is the sign of the gradient.
    move = weight.grad.sign() + 0.1 * before
    torch.testing.assert_close(
        weight.detach(), before - 0.25 * before.norm() * move / move.norm(), rtol=1e-5, atol=1e-6
    )


def test_weights_of_length_zero_and_tensors_without_decay_move_as_by_adam() -> None:
    zero, plain = nn.Parameter(torch.zeros(7, 5)), nn.Parameter(torch.randn(5))
    before = plain.detach().clone()
    zero.grad, plain.grad = torch.randn(7, 5), torch.randn(5)
    decays = [
        {"params": [p], "lr": 0.25, "weight_decay": d} for p, d in ((zero, 0.1), (plain, 0.0))
    ]

    Lamb(decays, betas=(0.9, 0.999), eps=1e-8).step()

    torch.testing.assert_close(zero.detach(), -0.25 * zero.grad.sign(), rtol=1e-5, atol=1e-6)
    wanted = before - 0.25 * plain.grad.sign()
    torch.testing.assert_close(plain.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_a_tensor_without_gradient_stays_and_one_of_zeros_is_finite(gradient: float | None) -> None:
    weight, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
    for p in (weight, other):
        p.grad = None if gradient is None else torch.full((3,), gradient)
    optimizer = Lamb(
        [{"params": [weight, other], "lr": 0.5, "weight_decay": 0.1}], betas=(0.9, 0.999), eps=1e-8
    )

    optimizer.step()

    # By its decay alone, the length of which is made that of the weights: half of them.
    assert torch.equal(weight.detach(), torch.full((3,), 1.0 if gradient is None else 0.5))
    assert torch.equal(other.detach(), torch.zeros(3))
    assert bool(optimizer.state) == (gradient is not None)


def test_a_move_of_length_zero_leaves_the_weights_as_they_are() -> None:
    weight = nn.Parameter(torch.full((3,), 1e-15))
    weight.grad = torch.zeros(3)  # and the decay of so small a weight is 0 in single precision

    Lamb(
        [{"params": [weight], "lr": 0.5, "weight_decay": 1e-35}], betas=(0.9, 0.999), eps=1e-8
    ).step()

    assert torch.equal(weight.detach(), torch.full((3,), 1e-15))
