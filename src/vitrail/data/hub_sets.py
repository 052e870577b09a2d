"""Data sets of the Hugging Face hub, `hf:OWNER/NAME[@REVISION]`, read through `datasets`."""

from typing import Any

from vitrail.data.address import split_name
from vitrail.data.listing import Found, Images, Names, numbered, suffix_of
from vitrail.data.tables import IMAGE_COLUMNS, LABEL_COLUMNS, check_filled, pick
from vitrail.errors import DataError


def open_hub_set(name: str, image_column: str | None, label_column: str | None) -> Found:
    """Open all splits of a data set; it is downloaded on first use, into the hub's own cache."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf:{name} needs `datasets`: pip install vitrail[datasets]") from error
    repository, _, revision = name.partition("@")
    try:
        loaded = datasets.load_dataset(repository, revision=revision or None)
    except Exception as error:  # of the network, the hub, or any of its readers
        raise DataError(
            f"hf:{name} cannot be opened as a data set of the hub: {error}\n"
            "(HF_TOKEN opens private ones, HF_HUB_OFFLINE=1 takes what was downloaded before)"
        ) from error
    parts: dict[str, Images] = {}
    for split, rows in loaded.items():
        parts[split_name(str(split))] = _open(
            rows, f"hf:{name}, {split}", image_column, label_column
        )
    return Found(parts)


def _open(rows: Any, where: str, image_column: str | None, label_column: str | None) -> Images:
    import datasets

    image = pick(rows.column_names, image_column, IMAGE_COLUMNS, "image", where)
    label = pick(rows.column_names, label_column, LABEL_COLUMNS, "label", where)
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    values = rows.with_format(None)[label][:]
    check_filled(values, range(len(values)), where)
    labels, classes = numbered(values, getattr(rows.features[label], "names", ()), where)
    images = rows.select_columns([image])

    def read_row(row: int) -> bytes:
        value = images[row][image]
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                with open(value["path"], "rb") as file:
                    return file.read()
            value = value.get("bytes")
        if not isinstance(value, bytes) or not value:
            raise DataError("the row has no image")
        return value

    try:
        suffix = suffix_of(read_row(0)) if values else ""
    except (DataError, OSError):  # it is counted when it is read
        suffix = ""
    places = Names(f"{rows.split or 'row'}-{row}{suffix}" for row in range(len(values)))
    return Images(places, labels, classes, read_row)
