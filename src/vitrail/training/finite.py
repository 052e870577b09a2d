"""Numbers that are not finite: a step is left out, or the training stops and says where."""

from pathlib import Path
from typing import NoReturn

from torch import Tensor

from vitrail.errors import NonFiniteError
from vitrail.training import checkpoint


def is_step_finite(loss: Tensor, grad_norm: Tensor) -> bool:
    """Say whether a step can be taken; this waits for the device."""
    return bool((loss.detach() + grad_norm).isfinite())


def stop(found: str, checkpoints: Path) -> NoReturn:
    """Raise `NonFiniteError` that says what was found, what is left, and what to do."""
    kept = sorted(checkpoint.steps(checkpoints).values())
    left = f"the last finite checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    raise NonFiniteError(
        f"{found}; {left}. A lower --lr or a longer --schedule.warmup is the usual cure"
    )
