"""What the tests share: one tiny model, weights that hide nothing, and timm for those who ask."""

from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from ranks import Nursery
from vitrail.engines.names import is_installed
from vitrail.model.config import ViTConfig
from vitrail.weights.peer_models import load_package

# Tensors this small gain nothing from threads, and lose much to them on a busy machine.
torch.set_num_threads(1)

M = TypeVar("M", bound=nn.Module)

# No two axes have the same size, so that no mix-up of axes goes unseen:
# B 2, C 3, d 4, h 5, K 6, w 7, patch 8, classes 9, D 24, N 35, H 40, W 56, MLP 72.
TINY = ViTConfig(
    image_size=(40, 56), patch_size=8, classes=9, width=24, depth=2, heads=6, mlp_width=72
)


@torch.no_grad()
def randomize(module: M) -> M:
    """Draw every parameter: a bias left at 0 or a scale left at 1 would hide a mix-up."""
    for name, tensor in module.named_parameters():
        if tensor.ndim in (2, 4):
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif tensor.ndim == 1 and not name.endswith("bias"):  # norms and layer scale
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.normal_(std=0.5)
    return module


@pytest.fixture(autouse=True)
def _same_draws_in_every_test() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, TINY.channels, *TINY.image_size)


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    load_package("timm")
    import timm.layers
    import timm.models

    return timm


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where worlds of several processes come from."""
    started = Nursery()
    yield started
    started.close()


def needs(name: str) -> None:
    """Skip a test where the packages of an engine are not here.

    It imports none of them: OpenVINO's reports to Intel unless vitrail is the one who imports it.
    """
    if not is_installed(name):
        pytest.skip(f"engine {name} is not installed")
