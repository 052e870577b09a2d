"""The arithmetic of a training step, counted from the shapes: what a device is asked to do."""

from vitrail.model.shapes import summary
from vitrail.model.vit import ViT


def training_macs(model: ViT, size: tuple[int, int], *, head_alone: bool = False) -> int:
    """Count the multiply-adds that learning from one image of `size` (H, W) takes.

    Each product is taken once forwards, and once more backwards for each of its two factors that
    a gradient flows to: three in all, two at the first layer that learns, one where nothing before
    does. Not counted are patches that are dropped, tokens of the last block that the head does not
    read, what is computed twice (recomputing), a teacher, the augmentation and the optimizer. With
    `head_alone` the rest is not computed.
    """
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    rows = summary(model, (model.config.channels, *size), training=True).rows
    total, flows = 0, False  # whether a gradient flows back to what the row reads
    for row in rows:
        if head_alone and row.name != "head":
            continue
        learns = any(name == row.name or name.startswith(f"{row.name}.") for name in learned)
        backwards = learns + flows if row.parameters else 2 * flows  # two factors were computed
        total += row.macs * (1 + backwards)
        # Only the loss reads a head: nothing comes after it.
        flows = flows or (learns and not row.name.startswith("head"))
    return total
