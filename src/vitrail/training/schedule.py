"""The learning rate, and the size of the images, as pure functions of the step."""

import math

from vitrail.training.recipe import Recipe, Schedule

_GROWN = 0.8  # share of all steps after which images have their full size


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Give the share of the highest learning rate that step 0 .. steps - 1 takes.

    It rises in a straight line over the warm-up, and then stays, or falls to `schedule.final` at
    the last step: along half a cosine (Loshchilov and Hutter 2017, SGDR, without restarts), in a
    straight line, or, `wsd`, stays at first and falls in a straight line over the last `cooldown`
    (warm-up, stable, decay: Hu et al. 2024, MiniCPM, section 4).
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        start = schedule.warmup_start
        return start + (1 - start) * step / warmup if start else (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    begin = warmup
    if schedule.name == "wsd":
        # Both rounded up can be one step more than there is.
        begin = max(steps - round(schedule.cooldown * steps), warmup)
    progress = max(step - begin, 0) / max(steps - begin - 1, 1)
    if schedule.name == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    return 1 - (1 - schedule.final) * progress


def image_size(recipe: Recipe, step: int, steps: int) -> tuple[int, int] | None:
    """Give the height and width at a step, in whole patches; None for the model's own.

    Images grow from `train.first_size` (EfficientNetV2, Tan and Le 2021, section 4: small images
    first, for they are cheap).
    """
    first, full, patch = recipe.train.first_size, recipe.model.image_size, recipe.model.patch_size
    share = step / (_GROWN * steps)
    if first is None or share >= 1:
        return None
    tall, wide = (
        a + int((b - a) * share) // patch * patch for a, b in zip(first, full, strict=True)
    )
    return tall, wide
