"""The learning rate as a pure function of the step."""

import math

from vitrail.training.recipe import Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Give the share of the highest learning rate that step 0 .. steps - 1 takes.

    It rises in a straight line from 0 over the warm-up, then falls along half a cosine
    (Loshchilov and Hutter 2017, SGDR, without restarts) to `schedule.final`, or stays.
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    progress = (step - warmup) / max(steps - warmup - 1, 1)
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
