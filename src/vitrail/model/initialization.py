"""What a model's weights are before it has learned anything."""

import torch
from torch import nn

from vitrail.model.config import ViTConfig


@torch.no_grad()
def initialize(model: nn.Module, config: ViTConfig) -> None:
    """Draw all weights anew from torch's generator.

    | tensor | drawn from | after |
    |---|---|---|
    | linear layers, patch projection | Xavier uniform; q, k and v each by itself | JAX's ViT |
    | head | normal, std .02 | DeiT |
    | class, distillation, register tokens, MAP latent | normal, std .02 | DeiT |
    | positions | normal, std .02; below width 192 std 1/sqrt(D) | below |
    | biases | 0 | |
    | norms | 1 and 0 | |
    | layer scale | the config's value | CaiT |

    A narrow stream needs positions of its own size: .02 is that of a wide one, whose 1/sqrt(D) it
    is near. `docs/digits.md` has what the size of the first positions does at width 64.
    """
    for name, tensor in model.named_parameters():
        if tensor.is_meta:  # no numbers yet; torch would load its compiler to draw none
            continue
        module, kind = ["", *name.split(".")][-2:]
        if kind.endswith("bias"):
            nn.init.zeros_(tensor)
        elif "norm" in module:
            nn.init.ones_(tensor)
        elif kind == "gamma":
            nn.init.constant_(tensor, config.layer_scale or 1.0)
        elif kind == "pos_embed":
            nn.init.normal_(tensor, std=0.02 if config.width >= 192 else config.width**-0.5)
        elif kind.endswith(("_token", "latent")) or module.startswith("head"):
            nn.init.normal_(tensor, std=0.02)
        else:
            for matrix in tensor.flatten(1).chunk({"qkv": 3, "kv": 2}.get(module, 1)):
                nn.init.xavier_uniform_(matrix)
