"""Loading ViT-L/16 from safetensors until every parameter has been summed, warm cache.

    python benchmarks/loading.py [--preset vit-l16] [--rounds 7] [--write docs/loading.md]

Makes random weights in a temporary folder (1.2 GB), then loads them in turns, each time in a new
process that has imported its library already:

- floor: the file read into a fresh buffer by one `readinto`, and the buffer summed
- vitrail: `vitrail.load(file, preset=...)`, a timm safetensors file, and a bundle
- timm: `create_model(...)` and `load_checkpoint(...)`, as timm's own scripts do

Time is a ratio to the floor's, by wall and by process CPU time, medians; memory is the largest
resident size over that before loading, as a share of the weights (Linux). At the end vitrail's
model is summed once more after the file has been cut to half: a mapped file would kill the
process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import vitrail
from vitrail.model.presets import preset
from vitrail.weights.bundle import default_preprocess
from vitrail.weights.files import write_tensors

TIMM = {"vit-l16": "vit_large_patch16_224", "vit-b16": "vit_base_patch16_224"}


def total(model: torch.nn.Module) -> float:
    return float(sum(p.detach().sum() for p in model.parameters()))


def floor(folder: Path, name: str) -> Callable[[], float]:
    file = folder / "timm.safetensors"

    def run() -> float:
        size = file.stat().st_size
        buffer = torch.empty(size, dtype=torch.uint8)
        with file.open("rb", buffering=0) as source:
            view, done = memoryview(buffer.numpy()), 0  # pyright: ignore[reportArgumentType]
            while done < size:
                done += source.readinto(view[done:]) or size
        return float(buffer[: size // 4 * 4].view(torch.float32).nansum())  # the header too

    return run


def vitrail_file(folder: Path, name: str) -> Callable[[], float]:
    return lambda: total(vitrail.load(folder / "timm.safetensors", preset=name).model)


def vitrail_bundle(folder: Path, name: str) -> Callable[[], float]:
    return lambda: total(vitrail.load(folder / "bundle").model)


def timm_file(folder: Path, name: str) -> Callable[[], float]:
    for operator in ("nms", "qnms"):  # torchvision's compiled part may not load beside CPU torch
        if not hasattr(torch.ops.torchvision, operator):
            schema = "(Tensor a, Tensor b, float c) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
    import timm

    def run() -> float:
        model = timm.create_model(TIMM[name])
        timm.models.load_checkpoint(model, str(folder / "timm.safetensors"))
        return total(model)

    return run


WAYS = {
    "floor": floor,
    "vitrail, a timm file": vitrail_file,
    "vitrail, a bundle": vitrail_bundle,
    "timm": timm_file,
}


def measure(way: str, folder: Path, name: str) -> dict[str, float]:
    """Run one way in this process, and give its times and its memory."""
    torch.set_num_threads(1)
    run = WAYS[way](folder, name)
    vitrail.load("nano")  # every module is imported
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {**times, "memory": _resident("VmHWM") - before, "sum": value}


def cut(folder: Path, name: str) -> bool:
    """Tell whether the loaded model stands when its file is cut to half."""
    model = vitrail.load(folder / "timm.safetensors", preset=name).model
    first = total(model)
    os.truncate(folder / "timm.safetensors", (folder / "timm.safetensors").stat().st_size // 2)
    return total(model) == first


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _in_a_process(task: str, folder: Path, name: str) -> Any:
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder), "--preset", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, list[dict[str, float]]], weights: int, whole: bool) -> str:
    """Give the results as Markdown."""
    middle = {
        way: {key: median(row[key] for row in rows) for key in ("wall", "cpu", "memory")}
        for way, rows in results.items()
    }
    base = middle["floor"]
    lines = [
        "| | wall, times the floor | CPU, times the floor | peak memory, times the weights |",
        "|---|---|---|---|",
        *(
            f"| {way} | {row['wall'] / base['wall']:.2f} | {row['cpu'] / base['cpu']:.2f} "
            f"| {row['memory'] / weights:.2f} |"
            for way, row in middle.items()
        ),
        "",
        f"The floor takes {base['wall']:.2f} s ({base['cpu']:.2f} CPU-s) for "
        f"{weights / 1e9:.2f} GB. After the file was cut to half, vitrail's model gave "
        f"{'the same sum' if whole else 'ANOTHER SUM'}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", default="vit-l16", choices=TIMM)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task == "cut":
        print(json.dumps(cut(given.folder, given.preset)))
        return
    if given.task:
        print(json.dumps(measure(given.task, given.folder, given.preset)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = vitrail.create(given.preset)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        write_tensors(folder / "timm.safetensors", model.state_dict())
        labels = tuple(f"class {i}" for i in range(preset(given.preset).classes))
        preprocess = default_preprocess(model.config)
        vitrail.save(
            vitrail.Bundle(model=model, preprocess=preprocess, labels=labels), folder / "bundle"
        )
        del model
        results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                results[way].append(_in_a_process(way, folder, given.preset))
        page = table(results, weights, _in_a_process("cut", folder, given.preset))
    print(page)
    if given.write:
        what, _, how = (__doc__ or "").split("\n\n", 2)
        text = f"# Loading\n\n{what}\n\n{how.strip()}\n\n`python benchmarks/loading.py` repeats it."
        given.write.write_text(f"{text}\n\n{page}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
