"""The card of an exported file: what it is and how it was checked, as JSON and as Markdown."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vitrail import __version__
from vitrail.engines.exported import Exported
from vitrail.exporting.checking import TOLERANCE, Difference, OnImages

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


def card_of(
    facts: Exported,
    name: str,
    format: str,
    files: dict[str, Any],
    rows: Sequence[Difference],
    images: OnImages | None,
    floor: float | None,
) -> dict[str, Any]:
    """Give the card as plain values: `FILE.card.json`."""
    config = facts.config
    height, width = ("H", "W") if facts.any_size else config.image_size
    inside = facts.takes == "pixels"
    shape = ["batch", height, width, config.channels]
    if not inside:
        shape = ["batch", config.channels, height, width]
    values: dict[str, Any] = {
        "format": format,
        "file": name,
        "files": files,
        "vitrail": __version__,
        "dtype": facts.dtype,
        "input": {
            "name": facts.takes,
            "dtype": "uint8" if inside else "float32",
            "shape": shape,
            "preprocessing_inside": inside,
        },
        "outputs": [
            {"name": output, "shape": ["batch", config.classes or config.features]}
            for output in facts.outputs
        ],
        "preprocess": facts.preprocess.to_json(),
        "labels": list(facts.labels),
        "architecture": config.to_json(),
        "origin": dict(facts.origin or {}),
        "made_with": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **_versions(),
        },
        "calibrated_on": None,
        "differences": [row._asdict() | {"error": row.error} for row in rows],
        "tolerance": TOLERANCE if facts.dtype == "float32" else None,
        "least_agreement": floor,
        "on_images": None,
    }
    if images is not None:
        worst = [one._asdict() for one in images.worst]
        values["on_images"] = asdict(images) | {"change": images.change, "worst": worst}
    return values


def markdown(card: dict[str, Any]) -> str:
    """Give the card for people: `FILE.card.md`."""
    shape = " x ".join(map(str, card["input"]["shape"]))
    outputs = ", ".join(
        f"`{one['name']}` float32 {' x '.join(map(str, one['shape']))}" for one in card["outputs"]
    )
    lines = [
        f"# {card['file']}",
        "",
        f"A plain Vision Transformer as {card['format']} in {card['dtype']}, written and checked "
        f"by vitrail {card['vitrail']}.",
        "",
        f"- input: `{card['input']['name']}` {card['input']['dtype']} {shape}{_about(card)}",
        f"- output: {outputs}",
        f"- classes: {len(card['labels'])}; their names are in the file and in the card's JSON",
        f"- made with {', '.join(f'{k} {v}' for k, v in card['made_with'].items())}",
        *(
            f"- `{name}`: {one['bytes']:,} bytes, sha256 {one['sha256']}"
            for name, one in card["files"].items()
        ),
        "",
        "## Held against torch in float32",
        "",
        "Pixels of noise; `error` is the largest difference of a logit, as a share of the largest "
        "logit where that is above 1.",
        "",
        "| batch | image size | difference | largest logit | error |",
        "|---|---|---|---|---|",
    ]
    for row in card["differences"]:
        tall, wide = row["image_size"]
        lines.append(
            f"| {row['batch']} | {tall} x {wide} | {row['largest']:.1e} | {row['logit']:.3g} | "
            f"{row['error']:.1e} |"
        )
    if card["tolerance"]:
        lines += ["", f"At most {card['tolerance']:.0e} was asked for."]
    return "\n".join([*lines, *_images(card), ""])


def _about(card: dict[str, Any]) -> str:
    p = card["preprocess"]
    mean, std = (" ".join(f"{v:.4g}" for v in p[name]) for name in ("mean", "std"))
    done = "inside of the file" if card["input"]["preprocessing_inside"] else "before"
    return (
        f"; photos are resized before ({p['resize']}, crop {p['crop']:.4g}, {p['interpolation']}), "
        f"and (value / 255 - mean) / std with mean {mean} and std {std} is done {done}"
    )


def _images(card: dict[str, Any]) -> list[str]:
    found = card["on_images"]
    if found is None:
        return ["", "It was not tried on images (`--check DATA`)."]
    of = f" of {found['data']}" if found["data"] else ""
    lines = ["", f"## On {found['images']:,} images{of}", ""]
    if card["calibrated_on"]:
        lines += [f"Calibrated on {card['calibrated_on']['images']} images.", ""]
    lines += [
        f"- the same answer: {found['agreement']:.2%}",
        f"- top-1: {found['top1']:.2%}, and {found['top1_torch']:.2%} of torch: "
        f"{100 * found['change']:+.2f} points",
        f"- largest difference of a logit: {found['largest']:.2g}",
        "",
        "The images that differ most:",
        "",
        "| image | difference | torch | file |",
        "|---|---|---|---|",
    ]
    for one in found["worst"]:
        cells = (one["path"], f"{one['difference']:.1e}", one["torch"], one["file"])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
