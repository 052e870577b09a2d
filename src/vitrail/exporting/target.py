"""Where an export writes and what it can be, checked without importing torch."""

from pathlib import Path

from vitrail.engines.names import check_engine
from vitrail.errors import ConfigError, OutputError, nearest

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
DTYPES = {"onnx": ("float32", "int8"), "openvino": ("float32", "int8"),
          "torch": ("float32", "bfloat16")}  # fmt: skip
AGREEMENT = 0.99  # of the images, the least that bfloat16 and int8 must answer as float32 does


def format_of(path: Path) -> str:
    """Give the format that a file's ending names; raises `ConfigError` for another ending."""
    for name, ending in FORMATS.items():
        if path.suffix == ending:
            return name
    raise ConfigError(
        f'"{path}" names no form of file by its ending; give one of '
        f"{', '.join(FORMATS.values())}.{nearest(path.suffix, FORMATS.values())}"
    )


def check_export(path: Path, format: str, dtype: str) -> None:
    """Raise `ConfigError` for a format or dtype that cannot be, `OutputError` for the place.

    Nothing that is there is written over.
    """
    if format not in FORMATS:
        raise ConfigError(
            f'there is no format "{format}", but {", ".join(FORMATS)}.{nearest(format, FORMATS)}'
        )
    if path.suffix != FORMATS[format]:
        raise ConfigError(
            f'format "{format}" is written to a file that ends in {FORMATS[format]}, and "{path}" '
            f"does not: name it {path.with_suffix(FORMATS[format]).name}"
        )
    if dtype not in DTYPES[format]:
        raise ConfigError(
            f'format "{format}" has no dtype "{dtype}", but {" and ".join(DTYPES[format])}.'
            f"{nearest(dtype, DTYPES[format])}"
        )
    check_engine(format)
    if format == "openvino":
        check_engine("onnx")  # which its files are made of
    try:
        for name in names(path):
            if path.with_name(name).exists() or path.with_name(name).is_symlink():
                raise OutputError(
                    f"{path.with_name(name)} is there already; remove it, or give another name"
                )
    except (OSError, ValueError) as error:  # a name too long, below a file, or with a zero byte
        raise OutputError(f"{str(path)!r} cannot be written: {error}") from error
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} in")


def names(path: Path) -> list[str]:
    """Give the names of all files that an export may write, the one it is called by last."""
    beside = {".xml": [path.stem + ".bin"], ".onnx": [path.name + ".data"]}.get(path.suffix, [])
    return [*beside, f"{path.name}.card.json", f"{path.name}.card.md", path.name]
