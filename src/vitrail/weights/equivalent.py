"""Another architecture with the same outputs: what lets a model be said in another's words.

A bias of zeros is no bias, a scale of ones no scale, and a norm of each token is the norm of the
token that is picked. Each change here is exact but for the rounding of one sum where a position
is added to a token for good.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.model import positions
from vitrail.model.config import ViTConfig

Tensors = dict[str, Tensor]
# What a dialect's files may have no word for: the outputs change in the last digits, or at other
# image sizes than the native one alone. It is told, and the certificate measures it.
SLIGHT = ("norm_eps", "position_resize")
SLIGHTLY = "has no word for it"
# What may be given with the origin, so that the model is another one than it was.
ARITHMETIC = ("activation", "norm_eps", "classes")


def within(
    tensors: Mapping[str, Tensor], config: ViTConfig, holds: Mapping[str, Any], into: str
) -> tuple[Tensors, ViTConfig, list[str]]:
    """Give tensors and architecture within what `holds` allows, and a line for each change.

    `into` is the name of what they are for. Raises `WeightsError` that names every part that has
    no place there.
    """
    tensors, told, homeless, cures = dict(tensors), [], [], []
    for name, allowed in holds.items():
        have = getattr(config, name)
        choices = allowed if isinstance(allowed, tuple) else (allowed,)
        if have in choices:
            continue
        want = choices[0]
        if name in SLIGHT:
            config = config.replace(**{name: want})
            told.append(f"{name} {_text(have)} -> {_text(want)}: {into} {SLIGHTLY}")
            continue
        change = _CHANGES.get(name)
        changed = change(dict(tensors), config, want) if change else None
        if changed is None:
            homeless.append(f"{name} = {_text(have)} (there: {' or '.join(map(_text, choices))})")
            if name in ARITHMETIC:
                cures.append(f"{name}={_text(want)}")
            continue
        more = {"prefix_positions": 0} if name == "positions" else {}
        tensors, config = changed, config.replace(**{name: want}, **more)
        told.append(f"{name} {_text(have)} -> {_text(want)}: the same numbers")
    if homeless:
        cure = "choose another dialect"
        if len(cures) == len(homeless):
            cure = f"load it with {', '.join(cures)} to have another model than it was, knowingly"
        raise WeightsError(f"{into} has no place for {'; '.join(homeless)}: {cure}")
    return tensors, config, told


def _bias(ours: Callable[[ViTConfig], list[tuple[str, int]]]) -> Callable[..., Tensors | None]:
    """Give the change that adds biases of zeros, or takes away those that are all zero."""

    def change(tensors: Tensors, config: ViTConfig, want: bool) -> Tensors | None:
        for name, size in ours(config):
            if want:
                tensors[name] = torch.zeros(size, dtype=_dtype(tensors))
            elif name in tensors and tensors.pop(name).any():
                return None
        return tensors

    return change


def _blocks(name: str, size: Callable[[ViTConfig], int]) -> Callable[..., Any]:
    return lambda config: [(f"blocks.{i}.{name}", size(config)) for i in range(config.depth)]


def _mlp_biases(config: ViTConfig) -> list[tuple[str, int]]:
    hidden = config.mlp_width * (2 if config.mlp == "swiglu" else 1)
    fc1 = [(f"blocks.{i}.mlp.fc1.bias", hidden) for i in range(config.depth)]
    return fc1 + [(f"blocks.{i}.mlp.fc2.bias", config.width) for i in range(config.depth)]


def _head_biases(config: ViTConfig) -> list[tuple[str, int]]:
    heads = ["head", "head_dist"] if config.distillation_token else ["head"]
    return [(f"{head}.bias", config.classes) for head in heads if config.classes]


def _qkv_bias(tensors: Tensors, config: ViTConfig, want: str) -> Tensors | None:
    inner = config.heads * config.head_width
    zeros = torch.zeros(inner, dtype=_dtype(tensors))
    for i in range(config.depth):
        at = f"blocks.{i}.attn."
        whole = tensors.pop(at + "qkv.bias", None)
        q, k, v = (zeros, zeros, zeros) if whole is None else whole.chunk(3)
        q, v = tensors.pop(at + "q_bias", q), tensors.pop(at + "v_bias", v)
        if (want != "all" and k.any()) or (want == "none" and (q.any() or v.any())):
            return None
        if want == "all":
            tensors[at + "qkv.bias"] = torch.cat([q, k, v])
        elif want == "no_key":
            tensors |= {at + "q_bias": q.clone(), at + "v_bias": v.clone()}
    return tensors


def _layer_scale(tensors: Tensors, config: ViTConfig, want: float | None) -> Tensors | None:
    for i in range(config.depth):
        for name in (f"blocks.{i}.ls1.gamma", f"blocks.{i}.ls2.gamma"):
            if want is not None:
                tensors.setdefault(name, torch.ones(config.width, dtype=_dtype(tensors)))
            elif name in tensors and not torch.equal(tensors[name], torch.ones_like(tensors[name])):
                return None
            else:
                tensors.pop(name, None)
    return tensors


def _positions(tensors: Tensors, config: ViTConfig, want: str) -> Tensors | None:
    """Write fixed positions out as a table, which at other image sizes is then resized."""
    if (config.positions, want) != ("sincos", "learned"):
        return None
    table = positions.sincos(config.grid, config.width, torch.device("cpu")).to(_dtype(tensors))
    return tensors | {"pos_embed": table}


def _prefix_positions(tensors: Tensors, config: ViTConfig, want: int) -> Tensors | None:
    """Add positions of zeros, or add positions to their tokens for good."""
    if "pos_embed" not in tensors:
        return tensors
    if want > config.prefix:
        return None
    table, have = tensors["pos_embed"], config.prefix_positions
    if want >= have:
        extra = table.new_zeros(1, want - have, config.width)
        rows = torch.cat([table[:, :have], extra, table[:, have:]], dim=1)
        return tensors | {"pos_embed": rows}
    sizes = {"cls_token": int(config.class_token), "dist_token": int(config.distillation_token)}
    first = 0
    for name, size in {**sizes, "reg_token": config.registers}.items():
        for place in range(size):
            if want <= first < have:
                token = tensors[name].clone()
                token[:, place] += table[:, first]
                tensors[name] = token
            first += 1
    tensors["pos_embed"] = torch.cat([table[:, :want], table[:, have:]], dim=1)
    return tensors


def _pooling(tensors: Tensors, config: ViTConfig, want: str) -> Tensors | None:
    """Let the head read the mean of the patches too, with weights of zero."""
    plain = config.final_norm != "pooled" and not config.pre_logits and config.classes
    if (config.pooling, want) != ("cls", "cls+mean") or not plain or config.distillation_token:
        return None
    head = tensors["head.weight"]
    return tensors | {"head.weight": torch.cat([head, torch.zeros_like(head)], dim=1)}


def _final_norm(tensors: Tensors, config: ViTConfig, want: str) -> Tensors | None:
    """Move the norm across the picking of the class token, which it does not notice."""
    if config.pooling != "cls" or "none" in (config.final_norm, want):
        return None
    old, new = ("norm", "fc_norm") if want == "pooled" else ("fc_norm", "norm")
    for part in ("weight", "bias"):
        tensors[f"{new}.{part}"] = tensors.pop(f"{old}.{part}")
    return tensors


_CHANGES: dict[str, Callable[..., Tensors | None]] = {
    "patch_bias": _bias(lambda config: [("patch_embed.proj.bias", config.width)]),
    "proj_bias": _bias(_blocks("attn.proj.bias", lambda config: config.width)),
    "mlp_bias": _bias(_mlp_biases),
    "head_bias": _bias(_head_biases),
    "qkv_bias": _qkv_bias,
    "layer_scale": _layer_scale,
    "positions": _positions,
    "prefix_positions": _prefix_positions,
    "pooling": _pooling,
    "final_norm": _final_norm,
}


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return tensors["patch_embed.proj.weight"].dtype


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
