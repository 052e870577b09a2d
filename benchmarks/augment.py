"""Augmentation of a batch, 32 photos of 3 x 224 x 224, against the peers' transforms, on one core.

    python benchmarks/augment.py [--rounds 9] [--write docs/augment-speed.md]

Milliseconds an image, of uint8 pixels in memory: vitrail's batch, compiled (wall and process CPU
time), compiled with the normalising that makes it the model's input, and all of that eager. Beside
it what the peers do to the same images, without turning them into normalised tensors, one
after the other in Pillow: torchvision's ColorJitter, timm's policies; and timm's erasing and Mixup
of float batches. Draws are made anew in every round and are counted. Numbers are medians;
vitrail's work is the same for every image, whatever it drew, the peers' only what they drew.

glibc is told to keep freed memory, as in benchmarks/data.py, which it does up to 32 MB: getting the
pages of a larger batch anew takes up to 0.3 ms an image, whatever is computed.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vitrail.data.augment import Draws, augment, draw
from vitrail.data.config import Augment
from vitrail.data.mixing import mixed
from vitrail.data.preprocess import Preprocess
from vitrail.training.learner import model_input
from vitrail.weights.peer_models import load_package

SIDE, BATCH = 224, 32
KEEP = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_TOP_PAD_": str(2**28),
}


class Times(NamedTuple):
    """Milliseconds an image."""

    wall: float
    cpu: float


class Case(NamedTuple):
    """Settings, what they are called, and the peer's transform of Pillow images."""

    name: str
    how: Augment
    peer: str = ""


def cases() -> list[Case]:
    def policy(name: Any, **more: Any) -> Augment:
        return Augment(policy=name, **more)

    jitter: dict[str, Any] = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
    return [
        Case("nothing: to floating point", Augment()),
        Case("brightness 0.3", Augment(brightness=0.3)),
        Case("brightness, contrast, saturation 0.3", Augment(**jitter), "jitter"),
        Case(
            "the same, grey 0.2, solarize 0.2, flip",
            Augment(**jitter, grey=0.2, solarize=0.2, flip=True),
            "all colours",
        ),
        Case("the first, and hue 0.1", Augment(**jitter, hue=0.1), "hue"),
        Case("blur 0.5", Augment(blur=0.5), "blur"),
        Case("3-augment, jitter 0.3", policy("3-augment", **jitter), "3-augment"),
        Case("randaugment timm, m9, std 0.5", policy("randaugment", magnitude_std=0.5), "timm"),
        Case("randaugment torchvision, m9", policy("randaugment", variant="torchvision")),
        Case("randaugment big_vision, m10", policy("randaugment", variant="big_vision")),
        Case("trivialaugment", policy("trivialaugment"), "trivialaugment"),
        Case("erase 0.25", Augment(erase=0.25), "erase"),
        Case("mixup 0.8", Augment(mixup=0.8), "mixup"),
        Case("mixup 0.8, cutmix 1.0", Augment(mixup=0.8, cutmix=1.0), "cutmix"),
        Case(
            "DeiT III: 3-augment, jitter 0.3, mixup 0.8, cutmix 1.0",
            policy("3-augment", **jitter, mixup=0.8, cutmix=1.0),
        ),
        Case(
            "DeiT: randaugment, erase 0.25, mixup 0.8, cutmix 1.0",
            policy("randaugment", magnitude_std=0.5, erase=0.25, mixup=0.8, cutmix=1.0),
        ),
    ]


def peers() -> dict[str, Callable[[list[Image.Image]], object]]:
    """Give the peers' transforms, each of a list of images."""
    data: Any = import_module("timm.data")
    own: Any = import_module("timm.data.auto_augment")
    vision: Any = import_module("torchvision.transforms")
    mean = {"img_mean": (124, 116, 104)}
    jitter = vision.ColorJitter(0.3, 0.3, 0.3)
    three = own.auto_augment_transform("3a", mean)
    rand = own.rand_augment_transform("rand-m9-mstd0.5-inc1", mean)
    colours = vision.Compose(
        [
            vision.RandomHorizontalFlip(),
            jitter,
            vision.RandomGrayscale(0.2),
            vision.RandomSolarize(128, 0.2),
        ]
    )
    blur = vision.RandomApply([vision.GaussianBlur(13, (0.1, 2.0))], 0.5)
    erase = data.random_erasing.RandomErasing(0.25, mode="pixel", device="cpu")
    floats = torch.rand(BATCH, 3, SIDE, SIDE)
    labels = torch.arange(BATCH) % 10

    def mix(**how: float) -> Callable[[list[Image.Image]], object]:
        mixer = data.Mixup(**how, mode="elem", num_classes=10)
        return lambda _: mixer(floats.clone(), labels)

    def each(transform: Callable[[Image.Image], object]) -> Callable[[list[Image.Image]], object]:
        return lambda images: [transform(image) for image in images]

    return {
        "jitter": each(jitter),
        "all colours": each(colours),
        "hue": each(vision.ColorJitter(0.3, 0.3, 0.3, 0.1)),
        "blur": each(blur),
        "3-augment": each(vision.Compose([three, jitter])),
        "timm": each(rand),
        "trivialaugment": each(vision.TrivialAugmentWide()),
        "erase": lambda _: erase(floats.clone()),
        "mixup": mix(mixup_alpha=0.8),
        "cutmix": mix(mixup_alpha=0.8, cutmix_alpha=1.0),
    }


def measured(run: Callable[[], object], rounds: int) -> Times:
    """Give the medians after two rounds that do not count."""
    times = []
    for _ in range(rounds + 2):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Times(*(1e3 / BATCH * median(each) for each in zip(*times[2:], strict=True)))


def changed(
    images: torch.Tensor, draws: Draws, how: Augment, _preprocess: Preprocess
) -> torch.Tensor:
    """Augment and mix, and leave the pixels as they are, 0 to 255."""
    images = augment(images, draws, how)
    return images if draws.mixing is None else mixed(images, draws.mixing)


def ours(images: torch.Tensor, how: Augment, rounds: int) -> tuple[Times, Times, Times]:
    """Measure a batch compiled, without and with normalising, and eager."""
    keys, preprocess = np.arange(BATCH), Preprocess(size=(SIDE, SIDE))
    epochs = iter(range(10**6))

    def run(change: Callable[..., torch.Tensor]) -> Callable[[], object]:
        def once() -> object:
            draws = draw(0, next(epochs), keys, keys // how.mix_block, how, (SIDE, SIDE))
            return change(images, draws, how, preprocess)

        return once

    def compiled(change: Callable[..., torch.Tensor]) -> Times:
        torch.compiler.reset()
        return measured(run(torch.compile(change, fullgraph=True)), rounds)

    eager = measured(run(model_input), max(rounds // 3, 1))
    return compiled(changed), compiled(model_input), eager


def peer_time(peer: Callable[[list[Image.Image]], object] | None, pictures: Any, n: int) -> str:
    if peer is None:
        return "-"
    try:
        return f"{measured(lambda: peer(pictures), n).cpu:.2f}"
    except (TypeError, ValueError, OSError, AttributeError) as error:
        return f"fails: {type(error).__name__}"  # timm's 1.0 calls what newer Pillows have dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if not KEEP.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    warnings.simplefilter("ignore")
    load_package("timm")
    torch.set_num_threads(1)
    pixels = smooth(np.random.default_rng(0))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    pictures = [Image.fromarray(image) for image in pixels]
    known = peers()
    lines = [
        "| settings | compiled, wall | compiled, CPU | normalised, CPU | eager, CPU | peer, CPU |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for case in cases():
        compiled, whole, eager = ours(images, case.how, given.rounds)
        peer = peer_time(known.get(case.peer), pictures, max(given.rounds // 3, 1))
        lines.append(
            f"| {case.name} | {compiled.wall:.3f} | {compiled.cpu:.3f} | {whole.cpu:.3f} "
            f"| {eager.cpu:.2f} | {peer} |"
        )
        print(lines[-1], flush=True)
    if given.write:
        what, _, how = (__doc__ or "").split("\n\n", 2)
        text = f"# Augmentation of a batch\n\n{what}\n\n{how.strip()}"
        page = "\n".join(lines)
        given.write.write_text(f"{text}\n\n{page}\n", encoding="utf-8")


def smooth(draws: np.random.Generator) -> np.ndarray:
    """Give photos' stand-ins, B H W C: blocks of colour with noise on them."""
    coarse = draws.integers(0, 216, (BATCH, SIDE // 16, SIDE // 16, 3)).repeat(16, 1).repeat(16, 2)
    return (coarse + draws.integers(0, 40, coarse.shape)).astype(np.uint8)


if __name__ == "__main__":
    main()
