"""Optimizers: AdamW, and Muon for the matrices of the blocks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitrail.training.recipe import Optimizer as Settings

_NOT_DECAYED = ("cls_token", "dist_token", "reg_token", "pos_embed", "attn_pool.latent")


class Optimizer:
    """One step for all parameters; its state goes by the parameters' names."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        matrices, rest = [], []
        for parameter, name in self.names.items():
            in_block = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if in_block and settings.name == "muon" else rest).append(parameter)
        lr = settings.adamw_lr if settings.name == "muon" else settings.lr
        decayed, plain = [], []
        for parameter in rest:
            is_matrix = parameter.ndim > 1 and self.names[parameter] not in _NOT_DECAYED
            (decayed if is_matrix else plain).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr)]
        if matrices:
            # Jordan et al. 2024: momentum, made orthogonal by Newton-Schulz, is a step of the same
            # size in every direction.
            self.parts.append(
                torch.optim.Muon(matrices, lr=settings.lr, weight_decay=settings.weight_decay)
            )
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """Move the weights by their gradients, at `factor` of the highest learning rate."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

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
        part_of = {
            p: part for part in self.parts for group in part.param_groups for p in group["params"]
        }
        for path, value in state.items():
            name, key = path.rsplit("/", 1)
            parameter = of_name[name]
            # Adam's step counter lives on the CPU whatever the device, as torch made it.
            device = "cpu" if value.ndim == 0 else parameter.device
            part_of[parameter].state[parameter][key] = value.to(device)
