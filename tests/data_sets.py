"""What the tests of data make their sets from: pictures that tell who they are, and tars."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from vitrail.data.decode import decode
from vitrail.data.sources import Source


def picture(grey: int = 0) -> bytes:
    """Give a PNG of 4 x 4 pixels of one grey."""
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, format="PNG")
    return file.getvalue()


def grey_of(data: bytes) -> int:
    return int(decode(data)[0, 0, 0])


def listing(source: Source) -> dict[str, str]:
    """Give the class name of every image of a source."""
    return {source.name(i): source.classes[source.label(i)] for i in range(len(source))}


def greys(source: Source) -> dict[str, int]:
    """Give the grey of every image of a source."""
    return {source.name(i): grey_of(source.read(i)) for i in range(len(source))}


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pictures(*names: str) -> dict[str, bytes]:
    """Give a picture of another grey for each name."""
    return {name: picture(grey) for grey, name in enumerate(names)}
