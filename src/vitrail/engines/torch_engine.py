"""torch as an engine: where a model runs."""

import torch

from vitrail.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Give the device called `name`; `auto` is CUDA, else MPS, else the CPU.

    Raises `ConfigError` for a device that this machine does not have.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in here.items() if there))
    if not here.get(name, False):
        found = ", ".join(device for device, there in here.items() if there)
        raise ConfigError(
            f'there is no device "{name}" here, but {found}; `vitrail doctor` says more'
        )
    return torch.device(name)
