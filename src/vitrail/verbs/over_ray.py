"""`predict` and `embed` with --ray: the same answers, from more than one machine."""

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from vitrail.data.inputs import Item, inputs
from vitrail.errors import ConfigError
from vitrail.verbs.words import as_json, split_as_in_run

if TYPE_CHECKING:
    from vitrail.verbs.answers import Embed, Predict


def check_flags(flags: "Predict | Embed") -> None:
    """Raise `ConfigError` for flags that do not go with --ray, or that are nothing without it."""
    if flags.cluster.ray is None:
        for name in ("part_images", "cores_per_model"):
            if getattr(flags.cluster, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is a matter of --ray: give both")
        return
    if flags.runs.dtype == "auto":
        raise ConfigError("--dtype auto is chosen by one machine: name a dtype with --ray")
    from vitrail.inference.cluster import check_ray

    check_ray(flags.cluster.ray)
    if flags.output is None:
        raise ConfigError("--ray writes parts: name a folder for them with -o")


def predict_over_ray(flags: "Predict") -> int:
    """Write the answers of `vitrail predict` as parts of a folder."""
    if flags.json or flags.format in (None, "table"):
        given = "--json" if flags.json else "a table"
        raise ConfigError(f"{given} has no parts: give --format csv, jsonl or parquet with --ray")
    from vitrail.inference.distributed import predict_parts
    from vitrail.inference.predict import check_answers
    from vitrail.weights.loading import load

    assert flags.output is not None
    cluster = _cluster(flags)
    bundle = load(flags.model)
    check_answers(bundle, flags.top)
    found = predict_parts(
        bundle,
        partial(inputs, flags.images, flags.image_column),
        flags.output,
        flags.top,
        form=flags.format,
        engine=flags.engine,
        dtype=flags.runs.dtype,
        merge=flags.runs.merge,
        aspect=flags.runs.aspect,
        cluster=cluster,
    )
    print(f"{found.images:,} images, {found.failed:,} failed: {flags.output}", file=sys.stderr)
    return 2 if found.failed else 0


def embed_over_ray(flags: "Embed") -> int:
    """Write the embeddings of `vitrail embed` as parts of a folder."""
    if flags.neighbours is not None or flags.probe:
        raise ConfigError(
            "--neighbours and --probe compare all embeddings on one machine: leave them out, or "
            "--ray"
        )
    from vitrail.inference.distributed import embed_parts
    from vitrail.weights.loading import load

    assert flags.output is not None
    cluster = _cluster(flags)
    bundle = load(flags.model)
    items = partial(_opened, flags.data, flags.split, images_of(flags, bundle.origin))
    how: dict[str, Any] = {"tokens": flags.tokens, "layer": flags.layer, "dtype": flags.runs.dtype}
    how |= {"merge": flags.runs.merge, "aspect": flags.runs.aspect}
    found = embed_parts(bundle, items, flags.output, **how, cluster=cluster)
    for path, reason in found.bad:
        print(f"not read: {path}: {reason}", file=sys.stderr)
    values = {
        "images": found.images - found.failed,
        "split": flags.split,
        "failed": found.failed,
        "size": list(found.shape),
        "bad": [{"path": path, "reason": reason} for path, reason in found.bad],
    }
    size = " x ".join(map(str, found.shape))
    text = f"{values['images']:,} images, {size} numbers each"
    print(as_json(values) if flags.json else text)
    return 2 if found.failed else 0


def images_of(flags: "Embed", origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give how the images of `vitrail embed` are opened: a split of a run's data as the run did."""
    columns = flags.image_column, flags.label_column
    if flags.split != "all":
        return split_as_in_run(origin, flags.data, *columns)
    return dict(zip(("image_column", "label_column"), columns, strict=True))


def _opened(data: str, split: Any, how: Mapping[str, Any]) -> Iterator[Item]:
    """Open the images of a data set; notes are told here, and in the logs of the machines."""
    from vitrail.data.sets import labelled_or_not

    items, notes = labelled_or_not(data, split, **how)
    for note in notes:
        print(note, file=sys.stderr)
    return items


def _cluster(flags: "Predict | Embed") -> Any:
    from vitrail.inference.distributed import Cluster

    assert flags.cluster.ray is not None
    return Cluster(
        address=flags.cluster.ray,
        device=flags.runs.device,
        cores=flags.cluster.cores_per_model,
        part_images=flags.cluster.part_images,
        **flags.runs.reading(),
    )
