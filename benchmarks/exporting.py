"""How far exported files are from torch.

    python benchmarks/exporting.py [--write docs/export-parity.md]

One preset of each family, every weight random, is exported to ONNX for any image size, and that
file to OpenVINO's; both are opened again as `vitrail eval` opens them and answer for pixels of
noise, 1, 3 and 8 images of two sizes, as torch does in float32. The number is the largest
difference of a logit, or of a feature where there are no classes, as a share of the largest one
where that is above 1. `python benchmarks/exporting.py` repeats it where vitrail is installed with
its `dev` extra; `--only PRESET...` takes some of them.
"""

import argparse
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vitrail.engines.build import engine
from vitrail.engines.exported import Exported
from vitrail.engines.exported_files import read_export
from vitrail.exporting.checking import BATCHES, TOLERANCE, differences, plain_engine
from vitrail.exporting.graph import graph_of
from vitrail.exporting.writers import openvino_from, write
from vitrail.model.vit import create
from vitrail.weights.bundle import Bundle, default_preprocess
from vitrail.weights.reading import class_names

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
randomize = import_module("conftest").randomize

PRESETS = (
    "nano", "vit-s16", "simple-s16", "deit-s16-distilled", "deit3-s16", "mae-b16", "dino-s16",
    "dinov2-s14", "dinov2-s14-reg4", "dinov3-s16", "clip-b32", "siglip-b16", "blog-b16",
)  # fmt: skip


def bundle_of(name: str) -> Bundle:
    """Build a preset, every weight of which is drawn: at its start many a head gives nothing."""
    torch.manual_seed(0)
    model = randomize(create(name)).eval()
    config = model.config
    labels = class_names(config.classes)
    return Bundle(model=model, preprocess=default_preprocess(config), labels=labels)


def sizes_of(bundle: Bundle) -> list[tuple[int, int]]:
    """Give the model's own size and an oblong one, neither side of which is its own."""
    (height, width), patch = bundle.preprocess.size, bundle.model.config.patch_size
    tall, wide = height // patch, width // patch
    return [(height, width), (max(tall // 2, 2) * patch, (wide + wide // 4) * patch)]


def row(name: str) -> tuple[str, ...]:
    """Export a preset and measure both files; ends where one is further than an export may be."""
    bundle = bundle_of(name)
    config, sizes = bundle.model.config, sizes_of(bundle)
    facts = Exported(
        config=config, preprocess=bundle.preprocess, labels=bundle.labels, any_size=True
    )
    with TemporaryDirectory() as folder:
        onnx, openvino = Path(folder, "model.onnx"), Path(folder, "model.xml")
        write(graph_of(bundle.model, facts), onnx)
        openvino_from(onnx, openvino, facts)
        errors = []
        for path in (onnx, openvino):
            found = differences(plain_engine(bundle), engine(read_export(path)), sizes)
            errors.append(max(one.error for one in found))
    if not max(errors) <= TOLERANCE:
        raise SystemExit(f"{name} is {max(errors):.1e} away")
    millions = sum(p.numel() for p in bundle.model.parameters()) / 1e6
    positions = str(config.position_resize) if config.positions == "learned" else ""
    return (
        name,
        f"{millions:.1f} M",
        " and ".join(f"{tall} x {wide}" for tall, wide in sizes),
        f"{config.positions} {f'({positions})' if positions else ''}".strip(),
        *(f"{error:.1e}" for error in errors),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="a Markdown file to write as well")
    parser.add_argument("--only", nargs="+", default=PRESETS, choices=PRESETS)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        rows.append(row(name))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    packages = ("torch", "onnx", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# Exported files, held against torch",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        f"An export in float32 is refused beyond {TOLERANCE:.0e}. Batches of "
        f"{', '.join(map(str, BATCHES))}.",
        "",
        "| preset | parameters | image sizes | positions (resized) | ONNX Runtime | OpenVINO |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
        "",
        f"Measured on {platform.machine()} with {versions}.",
    ]
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
