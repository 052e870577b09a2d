"""From a new process to its end: an import, a page of help, the first answer; beside peers.

    python benchmarks/startup.py [--threads 1] [--rounds 9] [--write docs/startup.md]

Each task is a process of its own, and in a round all of them take their turn. The first answer is
that of a ViT-S/16 with random weights, read from a folder in the form of each library, to one image
of 224 x 224 pixels in a PNG file: its likeliest class, which must be the same for all. timm reads
its folder by `local-dir:`, and transformers by `from_pretrained`; their processors are those that
need no torchvision, or its Python part alone. The floor is `import torch` in a process that then
ends. Times are medians of whole processes, with their start and their end, in CPU seconds and by
the clock; files are in the system's cache after a first round, which does not count. The ratio is
that of CPU seconds to the floor's.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import vitrail
from runs import Page  # the script beside this one

PRESET = "vit-s16"

# As in peers.py: torchvision's compiled part does not load beside CPU torch.
STUBS = """
import torch
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
"""
VITRAIL = """
import sys, vitrail
bundle = vitrail.load(sys.argv[1] + "/vitrail")
[answer] = vitrail.predict(bundle, [sys.argv[1] + "/image.png"], top=1)
print(answer.top[0].index)
"""
TIMM = f"""{STUBS}
import sys, timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
model = timm.create_model("local-dir:" + sys.argv[1] + "/timm", pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    logits = model(transform(Image.open(sys.argv[1] + "/image.png").convert("RGB"))[None])
print(int(logits.softmax(dim=1).argmax()))
"""
TRANSFORMERS = f"""{STUBS}
import sys
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessorPil
model = ViTForImageClassification.from_pretrained(sys.argv[1] + "/huggingface").eval()
process = ViTImageProcessorPil.from_pretrained(sys.argv[1] + "/huggingface")
with torch.inference_mode():
    image = Image.open(sys.argv[1] + "/image.png").convert("RGB")
    logits = model(**process(image, return_tensors="pt")).logits
print(int(logits.softmax(dim=1).argmax()))
"""


class Task(NamedTuple):
    """What a process is started for."""

    what: str
    who: str
    words: tuple[str, ...]  # after `python`


FLOOR = Task("import", "torch, the floor", ("-c", "import torch"))
ANSWER = "the first answer"
TASKS = (
    FLOOR,
    Task("import", "**vitrail**", ("-c", "import vitrail")),
    Task("import", "timm", ("-c", STUBS + "import timm")),
    Task("import", "transformers", ("-c", "import transformers")),
    Task("--help", "**vitrail**", ("-m", "vitrail.cli", "--help")),
    Task("--help", "transformers", ("-m", "transformers.cli.transformers", "--help")),
    Task(ANSWER, "**vitrail**", ("-c", VITRAIL)),
    Task(ANSWER, "timm", ("-c", TIMM)),
    Task(ANSWER, "transformers", ("-c", TRANSFORMERS)),
)


class Times(NamedTuple):
    cpu: float
    wall: float


def prepare(folder: Path) -> None:
    """Write the model in each library's form, and an image."""
    model = vitrail.create(PRESET, seed=0)
    torch.manual_seed(0)
    for parameter in model.head.parameters():  # it begins as zeros, which answer nothing
        torch.nn.init.normal_(parameter)
    half, labels = (0.5, 0.5, 0.5), tuple(f"class {i}" for i in range(model.config.classes))
    preprocess = vitrail.Preprocess(size=model.config.image_size, mean=half, std=half)
    bundle = vitrail.Bundle(model=model.eval(), preprocess=preprocess, labels=labels)
    vitrail.save(bundle, folder / "vitrail")
    for dialect in ("timm", "huggingface"):
        vitrail.convert(bundle, folder / dialect, to=dialect)
    pixels = np.random.default_rng(0).integers(0, 256, (*model.config.image_size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "image.png")


def measure(task: Task, folder: Path, threads: int) -> tuple[Times, str]:
    """Run a task in a new process; give its times, and the last line that it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *task.words, *([str(folder)] if task.what == ANSWER else [])],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Times(cpu, wall), (done.stdout.splitlines() or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    given = parser.parse_args()
    found: dict[Task, list[Times]] = {task: [] for task in TASKS}
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        for number in range(given.rounds + 1):
            said = {task: measure(task, Path(scratch), given.threads) for task in TASKS}
            answers = {
                task.who: answer for task, (_, answer) in said.items() if task.what == ANSWER
            }
            if len(set(answers.values())) > 1:
                raise SystemExit(f"the answers differ: {answers}")
            for task, (times, _) in said.items():
                found[task] += [times] if number else []
            print(f"round {number} of {given.rounds}", file=sys.stderr, flush=True)
    about = f"{given.threads} thread{'s' * (given.threads > 1)}, medians of {given.rounds} rounds"
    columns = ("task", "who", "CPU s", "s", "times the floor")
    page = Page("Start-up", __doc__, about, columns)
    floor = median(times.cpu for times in found[FLOOR])
    for task, times in found.items():
        cpu, wall = (median(getattr(each, name) for each in times) for name in Times._fields)
        page.row(task.what, task.who, f"{cpu:.2f}", f"{wall:.2f}", f"{cpu / floor:.2f}")
    page.write(given.write)


if __name__ == "__main__":
    main()
