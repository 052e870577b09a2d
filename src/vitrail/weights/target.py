"""Where a conversion writes, checked without importing torch: a mistake is told at once."""

from pathlib import Path

from vitrail.errors import OutputError, WeightsError, nearest

# The dialects, and what each writes: a folder with config and weights, or one file.
FORMS = {
    "vitrail": "folder",
    "timm": "folder",
    "huggingface": "folder",
    "torchvision": ".pth",
    "google": ".npz",
    "clip": ".pth",
    "dinov2": ".pth",
    "dinov3": ".pth",
    "mae": ".pth",
    "vit-pytorch": ".pth",
    "blog": ".pth",
    "blog-after-softmax": ".pth",
}
TORCH_ENDINGS = (".pth", ".pt", ".bin")
ENDINGS = {".pth": (*TORCH_ENDINGS, ".safetensors"), ".npz": (".npz",)}


def check_dialect(name: str) -> None:
    """Raise `WeightsError` with the nearest for a dialect that there is not."""
    if name not in FORMS:
        raise WeightsError(
            f'there is no dialect "{name}".{nearest(name, FORMS)} There are {", ".join(FORMS)}'
        )


def check_target(target: Path, to: str) -> None:
    """Raise `WeightsError` for an unknown dialect, `OutputError` where something is in the way.

    Nothing that is there is written over: not a file, not a folder that holds something.
    """
    check_dialect(to)
    form = FORMS[to]
    try:
        target.lstat()
        there = True
    except FileNotFoundError:
        there = False
    except (OSError, ValueError) as error:  # a name too long, below a file, or with a zero byte
        raise OutputError(f"{str(target)!r} cannot be written: {error}") from error
    if form == "folder":
        if target.is_file() or target.suffix in (*TORCH_ENDINGS, ".npz", ".safetensors"):
            raise OutputError(f"{to} is a folder of files, and {target} names a file")
        if target.is_dir() and any(target.iterdir()):
            raise OutputError(f"{target} holds files already; give a new or empty folder")
        return
    if target.suffix not in ENDINGS[form]:
        wanted = " or ".join(ENDINGS[form])
        raise OutputError(f"{target} should end in {wanted}, as {to} is one file")
    if there:
        raise OutputError(f"{target} is there already; remove it, or give another name")
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent} to write {target.name} in")
