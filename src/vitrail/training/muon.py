"""Muon for matrices that lie in pieces on many processes."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitrail.training.parallel import like, whole

_MOMENTUM = "momentum_buffer"


class Muon(torch.optim.Muon):
    """Muon that gathers each matrix for its step: what is made orthogonal is all of it.

    Each process then computes each step, as it does where none lies in pieces, and keeps its
    piece: bit for bit the step of the whole matrix.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients."""
        if not any(isinstance(p, DTensor) for g in self.param_groups for p in g["params"]):
            super().step()
            return
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, {k: v for k, v in group.items() if k != "params"})

    def _move(self, p: Tensor, settings: dict[str, object]) -> None:
        assert p.grad is not None
        matrix = nn.Parameter(whole(p.detach()).clone())
        matrix.grad = whole(p.grad)
        one = torch.optim.Muon([{**settings, "params": [matrix]}])
        if self.state[p]:
            one.state[matrix][_MOMENTUM] = whole(self.state[p][_MOMENTUM])
        one.step()
        p.copy_(like(p, matrix.detach()))
        self.state[p][_MOMENTUM] = like(p, one.state[matrix][_MOMENTUM])
