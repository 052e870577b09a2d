"""LAMB: Adam whose step in each tensor is as long as that tensor's weights make it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# The `_foreach_` functions are what torch's own optimizers are written in, private only by name.
# pyright: reportPrivateImportUsage=false


class Lamb(torch.optim.Optimizer):
    """You et al. 2020 (arXiv:1904.00962), algorithm 2, as DeiT III ran it with apex' FusedLAMB.

    A tensor without weight decay moves as by Adam: FusedLAMB scales a step by its weights only
    where it decays them. The scale has no upper limit (`trust_clip` of timm's). FusedLAMB also
    clips the whole gradient to a norm of 1.0; here, as everywhere, the recipe's `clip` does.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.tensor(0.0),  # on the CPU: reading it waits for nothing
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            # Many tensors at once save launches on an accelerator. A CPU wants one at a time, which
            # stays in its cache; the arithmetic is the same.
            on_cpu = bool(parameters) and parameters[0].device.type == "cpu"
            for together in [[p] for p in parameters] if on_cpu else [parameters]:
                if together:
                    _move(together, [self.state[p] for p in together], group)


def _move(parameters: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    """Update the moments and the weights of tensors that have a gradient."""
    (beta1, beta2), decay = group["betas"], group["weight_decay"]
    gradients = [p.grad for p in parameters if p.grad is not None]
    means = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    for state in states:
        state["step"] += 1
    steps = [float(state["step"]) for state in states]

    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)

    # Both moments began at 0, and are that much too small (Kingma and Ba 2015, section 3).
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(roots, group["eps"])
    moves = torch._foreach_div(means, [1 - beta1**step for step in steps])
    torch._foreach_div_(moves, roots)

    if decay:
        torch._foreach_add_(moves, parameters, alpha=decay)
        weights = torch.stack(list(torch._foreach_norm(parameters)))
        lengths = torch.stack(list(torch._foreach_norm(moves)))
        # Weights that are all 0 have no length to go by, and move as they are.
        ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
        torch._foreach_mul_(moves, list(ratios.unbind()))
    torch._foreach_add_(parameters, moves, alpha=-group["lr"])
