"""Stored weights, fitted to another image size, patch size, number of channels or of classes.

Axes: `D` width, `C` channels, `p` patch size, `N` = h w patches row by row, `prefix` rows of a
position table that belong to prefix tokens. Tensors have our names and are never changed in place.
"""

from dataclasses import replace
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import WeightsError
from vitrail.model import positions
from vitrail.model.config import PositionResize, ViTConfig
from vitrail.model.vit import seeded

KERNEL, TABLE = "patch_embed.proj.weight", "pos_embed"


def resize_patch(weight: Tensor, size: int) -> Tensor:
    """Resize a patch kernel, D C p p, to D C size size, by the pseudo-inverse of the resize.

    Beyer et al. 2023 (FlexiViT, section 3.4): where B resizes a flattened patch x, the kernel
    pinv(B)^T w reads from B x what w reads from x: exactly if `size` is larger, else as nearly as
    can be. B is bicubic with antialiasing, as timm's (the paper's is bilinear).
    """
    patch = weight.shape[-1]
    if size == patch:
        return weight
    eye = torch.eye(patch, dtype=torch.float64, device=weight.device)[None, None]
    # Bicubic reads one axis after the other, so the pseudo-inverse is that of one axis, twice: of
    # size x p numbers, not of their square. The identity, resized along one axis, is its matrix.
    matrix = F.interpolate(eye, size=(size, patch), mode="bicubic", antialias=True)[0, 0]
    inverse = torch.linalg.pinv(matrix)  # p size
    return (inverse.T @ weight.double() @ inverse).to(weight.dtype)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a patch kernel, D C p p, to another number of channels, D channels p p.

    As timm: one channel has the sum of the C kernels, so that a grey image gives the tokens that
    it gave in C equal channels; n channels have the C kernels in turn, times C / n, which is as
    exact for n equal channels where C divides n. Where it does not, some kernels come once more
    than others, and the sum leans to them.
    """
    stored = weight.shape[1]
    if channels == stored:
        return weight
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        return precise.sum(dim=1, keepdim=True).to(weight.dtype)
    in_turn = torch.arange(channels, device=weight.device) % stored
    return (precise.index_select(1, in_turn) * (stored / channels)).to(weight.dtype)


def resize_table(
    table: Tensor,
    prefix: int,
    source: tuple[int, int],
    target: tuple[int, int],
    rule: PositionResize,
) -> Tensor:
    """Resize a position table, 1 (prefix + N) D, rows of prefix tokens left as they are."""
    if source == target:
        return table
    patches = positions.resize(table[:, prefix:], source, target, rule)
    return torch.cat([table[:, :prefix], patches], dim=1)


@torch.no_grad()
def fit(
    tensors: dict[str, Tensor], stored: ViTConfig, asked: ViTConfig, *, seed: int = 0
) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors for `asked`, and one line for each thing that was done to those of `stored`.

    Fitted are `image_size`, `patch_size`, `channels` and `classes`; what does not change is the
    same tensor. Any other field that asks for other shapes is left to the caller's check, which
    names both. Raises `WeightsError` where patches are normalised and cannot be fitted, or where
    a tensor to be fitted is not what `stored` says.
    """
    fitted = dict(tensors)
    done = _fit_kernel(fitted, stored, asked)
    done += _fit_table(fitted, stored, asked)
    done += _fit_heads(fitted, stored, asked, seed)
    return fitted, done


def preprocess_for(preprocess: Preprocess, config: ViTConfig) -> Preprocess:
    """Give the preprocessing for the image size and the channels of `config`.

    For one channel, mean and std are the means of those of all channels; for n, those of the
    stored ones in turn. Where they differ from channel to channel, as ImageNet's do, a grey image
    so normalised is near, but not equal, to what the model saw of it in colour.
    """
    mean, std = preprocess.mean, preprocess.std
    if config.channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    mean, std = (tuple(islice(cycle(values), config.channels)) for values in (mean, std))
    return replace(preprocess, size=config.image_size, mean=mean, std=std)


def _fit_kernel(fitted: dict[str, Tensor], stored: ViTConfig, asked: ViTConfig) -> list[str]:
    """Fit the patch kernel within `fitted`, and say so."""
    size, channels, done = asked.patch_size, asked.channels, []
    if (size, channels) == (stored.patch_size, stored.channels):
        return done
    if stored.patch_norms:
        sides = f"{stored.patch_size} x {stored.patch_size} x {stored.channels}"
        raise WeightsError(
            f"these weights normalise each patch before its projection (patch_norms), with a scale "
            f"for each of its {sides} numbers, and are not fitted to patch_size {size} and "
            f"channels {channels}; leave both as stored, and bring the images to that form"
        )
    if KERNEL not in fitted:
        return done
    kernel = fitted[KERNEL]
    shape = (stored.width, stored.channels, stored.patch_size, stored.patch_size)
    _check_shape(KERNEL, kernel, shape)
    fitted[KERNEL] = adapt_channels(resize_patch(kernel, size), channels)
    if size != stored.patch_size:
        how = "pseudo-inverse of bicubic, antialias"
        done.append(f"patches of {stored.patch_size} -> {size} pixels ({how})")
    if channels != stored.channels:
        how = "sum of the kernels" if channels == 1 else "kernels in turn"
        done.append(f"channels {stored.channels} -> {channels} ({how})")
    return done


def _fit_table(fitted: dict[str, Tensor], stored: ViTConfig, asked: ViTConfig) -> list[str]:
    """Fit learned positions within `fitted`, and say so."""
    source, target, rule = stored.grid, asked.grid, asked.position_resize
    learned = stored.positions == asked.positions == "learned"
    if source == target or not learned or TABLE not in fitted:
        return []
    prefix = stored.prefix_positions
    _check_shape(TABLE, fitted[TABLE], (1, prefix + source[0] * source[1], stored.width))
    fitted[TABLE] = resize_table(fitted[TABLE], prefix, source, target, rule)
    return [f"positions {source[0]} x {source[1]} -> {target[0]} x {target[1]} ({rule})"]


def _fit_heads(
    fitted: dict[str, Tensor], stored: ViTConfig, asked: ViTConfig, seed: int
) -> list[str]:
    """Put heads for other classes into `fitted`, or none for no classes, and say so."""
    if asked.classes == stored.classes:
        return []
    for name in [name for name in fitted if _is_head(name)]:
        del fitted[name]
    if asked.classes == 0:
        return [f"head of {stored.classes} classes left out"]
    dtype = torch.float32  # wider only where the rest is
    if KERNEL in fitted:
        dtype = torch.promote_types(fitted[KERNEL].dtype, dtype)
    fresh = seeded(asked.replace(depth=0), seed=seed).state_dict()  # heads need no blocks
    fitted |= {name: tensor.to(dtype) for name, tensor in fresh.items() if _is_head(name)}
    return [f"head {stored.classes} -> {asked.classes} classes (random, seed {seed})"]


def _is_head(name: str) -> bool:
    return name.split(".")[0] in ("head", "head_dist")


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise WeightsError(
            f"{name} is {tuple(tensor.shape)}, and the architecture it was stored with says "
            f"{wanted}; the two are not of one model: give the architecture of these weights"
        )
