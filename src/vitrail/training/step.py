"""One step: losses of the micro-batches, their gradient, its norm, and the move."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from vitrail.training.finite import is_step_finite
from vitrail.training.objectives import Objective
from vitrail.training.optimizer import Optimizer
from vitrail.training.parallel import Parallel, whole


class StepResult(NamedTuple):
    """Of one step, still on the device: reading one of them waits for it."""

    loss: Tensor
    right: Tensor
    grad_norm: Tensor
    taken: bool = True
    update_norm: Tensor | None = None  # of all weights, where it was asked for


def train_step(
    module: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    *,
    images: float,
    lr_factor: float,
    clip: float,
    scaler: GradScaler | None = None,
    skip_nonfinite: bool = False,
    parallel: Parallel | None = None,
    measured: bool = False,
) -> StepResult:
    """Take one step on the mean loss of `images` normalised images, B C H W in micro-batches.

    An image that could not be read is in none of them, and counts as nothing. Nothing here waits
    for the device, but with `skip_nonfinite`, and with a `scaler`, which float16 needs. Of many
    processes each has as many micro-batches, some of which may be empty, and `images` is a share.
    `measured` asks how far the weights move, for which all of them are copied.
    """
    losses, right = [], []
    for number, (pixels, targets) in enumerate(micro_batches, 1):
        share, filled = len(pixels) / images, len(pixels) > 0
        if not filled:  # it computes all the same: the others wait for its gradient, which is 0
            pixels, targets = (t.new_zeros(1, *t.shape[1:]) for t in (pixels, targets))
        with parallel.syncs(number == len(micro_batches)) if parallel else nullcontext():
            loss = objective.loss(module, pixels, targets)
            mean = loss.mean * share
            (mean if scaler is None else scaler.scale(mean)).backward()
        losses.append(mean.detach())
        right.append(loss.right if filled else loss.right * 0)
    if scaler is not None:
        optimizer.unscale(scaler)

    grad_norm = whole(nn.utils.clip_grad_norm_(module.parameters(), clip or float("inf")))
    loss, hits = torch.stack(losses).sum(), torch.stack(right).sum()
    if parallel is not None:
        loss, hits = parallel.mean(loss), parallel.total(hits)
    result = StepResult(loss, hits, grad_norm)
    if (skip_nonfinite or scaler is not None) and not is_step_finite(loss, grad_norm):
        result = result._replace(taken=False)
        module.zero_grad(set_to_none=True)
    elif measured:
        result = result._replace(update_norm=whole(optimizer.measured_step(lr_factor)))
    else:
        optimizer.step(lr_factor)
    if scaler is not None:
        scaler.update()  # a smaller scale where a gradient was not finite
    return result
