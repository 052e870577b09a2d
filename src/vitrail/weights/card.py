"""The model card: what a reader of the hub should know of a bundle, from what the bundle knows."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they import torch
    from vitrail.data.preprocess import Preprocess
    from vitrail.weights.bundle import Bundle

FEW = 20  # classes that are listed in sight; more are folded
MOST = 1000  # and more than these are left to config.json
_FACTS = {
    "run": "run",
    "data": "data",
    "step": "steps taken",
    "held_out_share": "share of the images held out",
    "split_seed": "seed of the split",
    "preset": "preset",
}
_METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "loss": "loss"}
_RESIZE = {
    "shortest": "is scaled to cover {0} x {1} pixels, and its centre of {2} x {3} is cut out",
    "square": "is stretched to {0} x {1} pixels, and its centre of {2} x {3} is cut out",
    "pad": "is fitted whole into {2} x {3} pixels, and filled up with the mean",
}


def model_card(bundle: "Bundle", repository: str) -> str:
    """Write the Markdown page of a bundle in the hub's repository OWNER/NAME."""
    bundle = replace(bundle, origin=public(bundle.origin or {}))
    sections = [
        f"---\n{_front_matter(bundle, repository)}\n---",
        f"# {_plain(repository.partition('/')[2])}",
        _first_words(bundle),
        "## How to use it",
        _usage(bundle, repository),
        "## The model",
        _architecture(bundle),
        "## What is done to an image",
        _preprocessing(bundle.preprocess),
        *(("## Classes", _classes(bundle.labels)) if bundle.labels else ()),
        "## How it was trained",
        _training(bundle.origin or {}),
        "## How good it is",
        _results(bundle),
        "## Limits",
        _limits(bundle),
    ]
    return "\n\n".join(sections) + "\n"


def public(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Cut absolute paths to their last names: whose they are and where is nobody else's matter."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in origin.items()
    }


def _front_matter(bundle: "Bundle", repository: str) -> str:
    """Give the YAML that the hub reads: names that it knows, and results where data are named."""
    from huggingface_hub import EvalResult, ModelCardData

    origin, task = bundle.origin or {}, _task(bundle)
    address = str(origin.get("data", ""))
    data = address.removeprefix("hf:")
    results = None
    if data and "top1" in bundle.metrics:
        results = [
            EvalResult(
                task_type=task,
                dataset_type=data,
                dataset_name=data,
                metric_type="accuracy",
                metric_name="top-1 accuracy",
                metric_value=bundle.metrics["top1"],
            )
        ]
    return ModelCardData(
        library_name="vitrail",
        pipeline_tag=task,
        tags=["vision-transformer"],
        license=origin.get("license"),
        datasets=data if address.startswith("hf:") else None,
        metrics=["accuracy"] if results else None,
        model_name=repository.partition("/")[2] if results else None,
        eval_results=results,
    ).to_yaml()


def _task(bundle: "Bundle") -> str:
    return "image-classification" if bundle.labels else "image-feature-extraction"


def _first_words(bundle: "Bundle") -> str:
    config = bundle.model.config
    does = (
        f"sorts images into {len(bundle.labels)} classes"
        if bundle.labels
        else f"turns an image into {config.features} features"
    )
    return (
        f"A plain Vision Transformer (ViT) of {_parameters(bundle):,} parameters that {does}. It "
        "is a `vitrail` bundle: `model.safetensors` holds the weights, and `config.json` the "
        "architecture, the preprocessing and the class names."
    )


def _usage(bundle: "Bundle", repository: str) -> str:
    origin = f"hf:{repository}"
    load = f'import vitrail\n\nbundle = vitrail.load("{origin}")\n'
    if not bundle.labels:
        return f"```python\n{load}tokens = bundle.model.tokens(images)  # B C H W, normalised\n```"
    return (
        f'```python\n{load}print(vitrail.predict(bundle, ["photo.jpg"], top=5))\n```\n\n'
        f"```sh\nvitrail predict {origin} photo.jpg\n```"
    )


def _architecture(bundle: "Bundle") -> str:
    config = bundle.model.config
    rows = {
        "parameters": f"{_parameters(bundle):,}",
        "image size": f"{config.image_size[0]} x {config.image_size[1]} (height x width)",
        "channels": config.channels,
        "patch size": config.patch_size,
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "width of the MLP": f"{config.mlp_width} ({config.mlp}, {config.activation})",
        "positions": config.positions,
        "registers": config.registers,
        "pooling": config.pooling,
    }
    return _table(rows) + "\n\nAll of it is in `config.json`, under `architecture`."


def _preprocessing(how: "Preprocess") -> str:
    resized = (round(side / how.crop) for side in how.size)
    smooth = "with" if how.antialias else "without"
    return (
        f"It {_RESIZE[how.resize].format(*resized, *how.size)} (height x width; "
        f"{how.interpolation}, {smooth} antialiasing). Values from 0 to 1 are then normalised by "
        f"the mean {_numbers(how.mean)} and the standard deviation {_numbers(how.std)} of the "
        "channels. `vitrail` does all of this."
    )


def _classes(labels: tuple[str, ...]) -> str:
    lines = [f"- {i}: {_plain(label)}" for i, label in enumerate(labels[:MOST])]
    if len(labels) > MOST:
        lines.append(f"- ... and {len(labels) - MOST} more, in `config.json` under `labels`")
    if len(labels) <= FEW:
        return "\n".join(lines)
    return "\n".join(
        [f"<details>\n<summary>{len(labels)} classes</summary>\n", *lines, "\n</details>"]
    )


def _training(origin: Mapping[str, Any]) -> str:
    if set(origin) == {"preset"}:
        return "It was not: the weights are random."
    facts = {
        _FACTS.get(key, key): value
        for key, value in origin.items()
        if isinstance(value, str | int | float)
    }
    if not facts:
        return "This is not recorded."
    return _table(facts) + "\n\nThis is what is recorded, in `config.json` under `origin`."


def _results(bundle: "Bundle") -> str:
    rows = {_METRICS.get(k, k): v for k, v in bundle.metrics.items() if isinstance(v, int | float)}
    if not rows:
        return "No measurement is recorded."
    origin = bundle.origin or {}
    where = (
        f"On images of {_plain(str(origin['data']))} that were held out of the training"
        if "data" in origin and "held_out_share" in origin
        else "As recorded in the bundle; on which images is not"
    )
    return f"{where} (accuracies are shares, from 0 to 1):\n\n{_table(rows)}"


def _limits(bundle: "Bundle") -> str:
    limits = [
        "How it does on other images than those it was measured on is not known.",
        "Whether it is as good for all people, places and things is not known.",
    ]
    if bundle.labels:
        limits.insert(0, "It answers with one of its classes for any image, whatever it shows.")
    if not (bundle.origin or {}).get("license"):
        limits.append("No license is recorded: ask the owner before you build on it.")
    return "\n".join(f"- {limit}" for limit in limits)


def _parameters(bundle: "Bundle") -> int:
    return sum(tensor.numel() for tensor in bundle.model.parameters())


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {_plain(name)} | {_plain(_value(value))} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _plain(text: str) -> str:
    """Give text as one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(text.split()))
