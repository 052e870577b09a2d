"""Optimizers: AdamW, SGD and LAMB, and Muon for the matrices of the blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from vitrail.errors import ConfigError
from vitrail.training.lamb import Lamb
from vitrail.training.muon import Muon
from vitrail.training.parallel import like
from vitrail.training.recipe import Optimizer as Settings

# What makes the tokens that enter the first block.
_EMBEDDING = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre")


class Optimizer:
    """One step for all parameters that need a gradient; its state goes by their names."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        every = dict(model.named_parameters())
        depth = max((layer(name, 0) for name in every if name.startswith("blocks.")), default=0)
        self.names = {p: name for name, p in every.items() if p.requires_grad}
        if not self.names:
            raise ConfigError(
                f"all {len(every)} parameters are frozen, and nothing is left to train; "
                "let one of them need its gradient"
            )
        muon, rest = {}, {}  # (highest rate, decay) -> parameters
        for parameter, name in self.names.items():
            # Norms and layer scales have one axis; tokens and positions are no "weight".
            decays = name.endswith(".weight") and parameter.ndim > 1
            by_muon = settings.name == "muon" and decays and name.startswith("blocks.")
            peak = settings.adamw_lr if settings.name == "muon" and not by_muon else settings.lr
            peak *= settings.layer_decay ** (depth + 1 - layer(name, depth))
            key = (peak, settings.weight_decay if decays else 0.0)
            (muon if by_muon else rest).setdefault(key, []).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            self.parts.append(_build(settings, _groups(rest)))
        if muon:
            # Jordan et al. 2024: momentum, made orthogonal by Newton-Schulz, is a step of the same
            # size in every direction.
            self.parts.append(Muon(_groups(muon)))

    def step(self, factor: float) -> None:
        """Move the weights by their gradients, at `factor` of the highest learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def unscale(self, scaler: GradScaler) -> None:
        """Take the scale of float16 off the gradients."""
        for part in self.parts:
            scaler.unscale_(part)

    def measured_step(self, factor: float) -> Tensor:
        """Step, and give the L2 norm of the whole move, on the device; it copies all weights.

        No optimizer's state tells its move (Muon's would be computed again), so a copy it is.
        """
        moves = [p.detach().clone() for p in self.names]
        self.step(factor)
        for move, parameter in zip(moves, self.names, strict=True):
            move -= parameter.detach()
        return nn.utils.get_total_norm(moves)

    def state(self) -> dict[str, Tensor]:
        """Give all that a resume needs, as `PARAMETER/KEY`."""
        return {
            f"{name}/{key}": value
            for parameter, name in self.names.items()
            for part in self.parts
            for key, value in part.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        of_name = {name: parameter for parameter, name in self.names.items()}
        home = {
            parameter: (part, group)
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
        }
        for path, value in state.items():
            name, key = path.rsplit("/", 1)
            parameter = of_name[name]
            part, group = home[parameter]
            # A step counter lives on the CPU whatever the device, but for torch's fused kernels.
            on_cpu = value.ndim == 0 and not group.get("fused")
            value = value.to("cpu" if on_cpu else parameter.device)
            part.state[parameter][key] = like(parameter, value)


def layer(name: str, depth: int) -> int:
    """Give the layer of a parameter: 0 makes the tokens, i + 1 is block i, depth + 1 is after.

    As in BEiT (Bao et al. 2022) and MAE, whose rates fall by `layer_decay` for each layer before
    the last. timm differs in one: its final norm has the rate of the last block.
    """
    words = name.split(".")
    if words[0] == "blocks":
        return int(words[1]) + 1
    return 0 if words[0] in _EMBEDDING else depth + 1


def _groups(parameters: Mapping[tuple[float, float], Sequence[Tensor]]) -> list[dict[str, Any]]:
    return [
        {"params": tensors, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), tensors in parameters.items()
    ]


def _build(settings: Settings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build what moves all parameters, or with Muon those that are not its own."""
    # One kernel for all tensors on CUDA. On the CPU too it is 3 times as fast as torch's own choice
    # for a ViT-Ti (5 ms, not 14), but that is 1 % of a step, and rounds otherwise than the runs
    # whose figures stand in docs/.
    fused = True if groups[0]["params"][0].device.type == "cuda" else None
    betas = (settings.beta1, settings.beta2)
    if settings.name == "sgd":
        # The decay is a part of the gradient, and so of the momentum: torch's SGD, by which the
        # field fine-tunes (DeiT), not the decoupled one of AdamW.
        return torch.optim.SGD(groups, momentum=settings.momentum, fused=fused)
    if settings.name == "lamb":
        return Lamb(groups, betas=betas, eps=settings.eps)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, fused=fused)
