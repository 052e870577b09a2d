"""Training on one GPU: its speed, whether a step waits for it, and what ten minutes of it learn.

    python benchmarks/gpu.py [--data CIFAR10] [--minutes 10] [--rounds 3] [--write docs/gpu.md]

Without a CUDA device it says so in a line, and measures nothing.

Steps: ViT-S/16 and ViT-B/16 at 224 px by the recipe `plain90` (RandAugment, mixup, AdamW) in
bfloat16, compiled, on batches that are in memory already; images/s and the share of the rate of the
fastest square product in bfloat16 on this device, measured in the same run (multiply-adds of the
three products of a layer; augmentation counts as nothing). The timed steps run while torch raises
an error for every wait of the host for the device.

Bits: `vitrail train` twice, on the digits and on `--data`; are the weights equal to the bit?

Accuracy: with `--data`, `vitrail train` from scratch with the flags printed in the table. It is
that of the last weights on the held-out images; no epoch was chosen.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from runs import train  # the script beside this one
from vitrail import __version__ as version
from vitrail.data.loader import Batch
from vitrail.inference.peak import matrix_rate, wait
from vitrail.model.presets import preset
from vitrail.training.learner import Learner
from vitrail.training.objectives import Classify
from vitrail.training.process import repeatable
from vitrail.training.recipe import read_recipe
from vitrail.training.start import start

CLASSES = 1000
SIZES = {"vit-s16": 512, "vit-b16": 256}  # images of a step
FROM_SCRATCH = (
    *("--recipe", "small-images", "--model", "vit-s16", "--model.image-size", "32", "32"),
    *("--model.patch-size", "4", "--model.depth", "7", "--model.pooling", "mean"),
    *("--model.positions", "rope", "--train.dtype", "bfloat16", "--train.compile"),
    *("--batch-size", "512", "--augment.policy", "trivialaugment", "--augment.mixup", "0.8"),
    *("--augment.cutmix", "1", "--augment.mix-share", "0.6", "--augment.erase", "0.25"),
    *("--train.drop.stochastic-depth", "0.1", "--ema.decay", "0.998"),
    *("--train.evaluate-every", "20", "--data.threads", "12"),
)


def batch(count: int, number: int) -> Batch:
    """Give random images as a loader would, in pinned memory."""
    draws = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, CLASSES, (count,), generator=draws)
    places = np.arange(count)
    return Batch(images.pin_memory(), labels.pin_memory(), places, places, places // 8, number)


def speed(
    name: str, device: torch.device, exact: bool, steps: int = 30
) -> tuple[float, float, float]:
    """Give images/s, the share of the device's rate and the peak memory in GiB.

    `exact` takes the kernels that add in the same order every time, as training does by default.
    """
    with repeatable(device, exact):
        return _speed(name, device, steps)


def _speed(name: str, device: torch.device, steps: int) -> tuple[float, float, float]:
    recipe = read_recipe("plain90")
    count = SIZES[name]
    model = preset(name).replace(classes=CLASSES, image_size=(224, 224))
    settings = replace(recipe.train, batch_size=count, compile=True, device="cuda", log_every=10**9)
    recipe = replace(recipe, model=model, train=settings)
    names = tuple(str(i) for i in range(CLASSES))
    objective = Classify(recipe.objective, np.ones(CLASSES))
    torch.cuda.reset_peak_memory_stats()
    learner = Learner(recipe, start(recipe, names), objective, device, steps=10**6)
    batches = [batch(count, number) for number in range(4)]
    for step in range(8):  # compiles, and chooses kernels
        learner.step(batches[step % 4], step)
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    began = time.perf_counter()
    for step in range(8, 8 + steps):
        learner.step(batches[step % 4], step)
    torch.cuda.set_sync_debug_mode("default")
    wait(device)
    rate = steps * count / (time.perf_counter() - began)
    peak = matrix_rate(device, "bfloat16")
    assert peak is not None
    share = 2 * learner.macs(0, 1) * rate / peak
    return rate, share, torch.cuda.max_memory_allocated() / 2**30


def steps_table(device: torch.device, rounds: int) -> list[str]:
    """Give the speed of each model, the median of some rounds, as a Markdown table."""
    cases = [(name, exact) for name in SIZES for exact in (True, False)]
    found: dict[tuple[str, bool], list[tuple[float, float, float]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for name, exact in cases:
            found[name, exact].append(speed(name, device, exact))
    rows = []
    for (name, exact), results in found.items():
        rate, share, memory = (median(column) for column in zip(*results, strict=True))
        bits = "the same" if exact else "may differ"
        rows.append(
            f"| {name} | {SIZES[name]} | {bits} | {rate:,.0f} | {share:.1%} | {memory:.1f} |"
        )
    peak = matrix_rate(device, "bfloat16") or 0.0
    return [
        f"The fastest product: {peak / 1e12:,.0f} TFLOP/s in bfloat16. No step waited.",
        "",
        "| model | batch | bits of a repeated run | images/s | share of that rate | memory, GiB |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def accuracy_table(data: str, minutes: str) -> list[str]:
    """Train from scratch for some minutes and give the accuracy as a Markdown table."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(data, Path(folder) / "run", *FROM_SCRATCH, "--minutes", minutes)
    summary = run.summary
    return [
        f"`vitrail train {Path(data).name} {' '.join(FROM_SCRATCH)} --minutes {minutes}`",
        "",
        "| accuracy (95 % interval) | parameters | steps | minutes |",
        "|---|---|---|---|",
        f"| {run} | {summary['parameters']:,} | {summary['steps']:,} "
        f"| {summary['seconds'] / 60:.1f} |",
        "",
    ]


def bits_table(sources: list[str]) -> list[str]:
    """Train each source twice for a few steps and say whether the weights are equal."""
    rows = []
    for source in sources:
        words = ("--device", "cuda", "--train.dtype", "bfloat16", "--train.steps", "60")
        mixing = ("--augment.mixup", "0.8", "--augment.cutmix", "1", "--train.drop.patches", "0.5")
        files = []
        with tempfile.TemporaryDirectory() as folder:
            for turn in ("first", "second"):
                train(source, Path(folder) / turn, *words, *mixing)
                files.append((Path(folder) / turn / "last" / "model.safetensors").read_bytes())
        rows.append(f"| {Path(source).name} | {'yes' if files[0] == files[1] else 'NO'} |")
    return ["| 60 steps, twice | equal to the bit |", "|---|---|", *rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="small images in classes, as CIFAR-10")
    parser.add_argument("--minutes", default="10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured")
        return
    device = torch.device("cuda")
    lines = ["# One GPU", "", *(__doc__ or "").split("\n\n", 3)[3].splitlines(), ""]
    name = torch.cuda.get_device_name(device)
    lines += [f"{name}, torch {torch.__version__}, vitrail {version}.", ""]
    lines += steps_table(device, arguments.rounds)
    lines += bits_table(["digits", *filter(None, [arguments.data])])
    if arguments.data:
        lines += accuracy_table(arguments.data, arguments.minutes)
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
