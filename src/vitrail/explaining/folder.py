"""Explanations of many images as pictures in a folder: what `vitrail explain` does."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.data.inputs import Item
from vitrail.data.listing import one_line
from vitrail.errors import DataError, OutputError
from vitrail.explaining.canvas import Format
from vitrail.explaining.explain import Explanation, explain
from vitrail.explaining.inside_pictures import draw_inside, draw_model
from vitrail.explaining.pictures import about, draw
from vitrail.weights.bundle import Bundle
from vitrail.weights.disk import write_bytes, written


class Drawn(NamedTuple):
    """One image: where its pictures are, or an error and none."""

    path: str
    error: str | None
    files: tuple[str, ...]
    explanation: Explanation | None

    def to_json(self) -> dict[str, Any]:
        """Give plain values: one entry of `vitrail explain --json`."""
        row = {"path": self.path, "error": self.error, "files": list(self.files)}
        return row | (self.explanation.to_json() if self.explanation is not None else {})

    def text(self) -> str:
        """Give a line for people."""
        if self.explanation is None:
            return one_line(f"{self.path}  error: {self.error}")
        return one_line(f"{self.path}  {' '.join(self.files)}  {about(self.explanation)}")


def explain_into(
    folder: Path,
    bundle: Bundle,
    items: Iterable[Item],
    *,
    format: Format = "png",
    inside: bool = False,
    **how: Any,
) -> Iterator[Drawn]:
    """Explain one image after the other into `folder`, made where it is missing.

    `how` is as for `explain`. An image that cannot be read has an error, and the others follow. No
    two pictures share a name. With `inside` the model is drawn as well, and for each image its
    token norms and attention distances. Raises `OutputError` where the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; pictures need a folder")
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    if inside:
        taken.add("model")
        write_bytes(folder / f"model.{format}", draw_model(bundle, format=format))
    for path, open_image, *_ in items:
        try:
            found = explain(bundle, open_image(), **how)
        except DataError as error:
            yield Drawn(path, str(error), (), None)
            continue
        except OSError as error:
            yield Drawn(path, f"the file cannot be read: {error.strerror or error}", (), None)
            continue
        name, title = _name(path, taken), Path(path).name
        files = [folder / f"{name}.{found.method}.{format}"]
        write_bytes(files[0], draw(found, title, format))
        if inside:
            files.append(folder / f"{name}.inside.{format}")
            write_bytes(files[1], draw_inside(bundle, found, title, format))
        yield Drawn(path, None, tuple(map(str, files)), found)


def _name(path: str, taken: set[str]) -> str:
    """Give a name for the pictures of an image that no other image's have, and remember it."""
    stem, number = Path(path).stem, 2
    name = stem
    while name.lower() in taken:  # some disks know no capitals
        name, number = f"{stem}-{number}", number + 1
    taken.add(name.lower())
    return name
