"""The other library's own model, from the same file: how far its numbers and ours are apart."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import VitrailError
from vitrail.model.vit import ViT
from vitrail.weights.peer_models import LIBRARIES, Peer, load_package
from vitrail.weights.reading import Reading

SAME = 1e-5  # of the largest value: what two orders of the same float32 sums may differ by


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The largest difference of one output, and the largest value of that output."""

    where: str  # "block 0", "tokens", "logits"
    difference: float
    largest: float

    @property
    def share(self) -> float:
        """The difference as a share of the largest value."""
        return self.difference / (self.largest or 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How far another library's model of the same file is from ours, block by block."""

    library: str  # with its version
    how: str  # what it was told of the file, or how it read it
    images: tuple[int, ...]  # B C H W
    rows: tuple[Difference, ...]

    def text_rows(self) -> list[tuple[str, str]]:
        """Give rows for people: with what, the verdict, and a table of the outputs."""
        count, *shape = self.images
        return [
            ("compared", f"with {self.library}, {self.how}"),
            ("", f"on {count} random images of {' x '.join(map(str, shape))}"),
            ("", self._verdict()),
            ("", f"{'difference':>10}{'of at most':>12}{'share':>9}"),
            *(
                (
                    f"  {row.where}",
                    f"{_short(row.difference):>10}{row.largest:>12.3g}{_short(row.share):>9}",
                )
                for row in self.rows
            ),
        ]

    def _verdict(self) -> str:
        apart = [row.where for row in self.rows if not row.share <= SAME]  # NaN is apart too
        if apart:
            return f"NOT the same: {apart[0]} is the first apart by over {SAME:g} of the largest"
        most = max(row.share for row in self.rows)
        return (
            f"the same numbers, to {most:.1e} of the largest" if most else "the same, bit for bit"
        )


def _short(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def compare(reading: Reading) -> Comparison | str:
    """Compare the model of a file with the other library's, or say why that is not possible.

    Whatever another library raises, prints or draws at random stays in here.
    """
    library = LIBRARIES.get(reading.dialect.name)
    if library is None:
        return f"{reading.dialect.variant} is in no package that could be asked"
    values = reading.values()
    with _aside():
        images = _images(reading, next(iter(values.values())).dtype)
        try:
            load_package(library.package)
            name = f"{library.package} {metadata.version(library.distribution)}"
        except Exception as error:
            if isinstance(error, ImportError) and error.name == library.package:
                return (
                    f"{library.package} is not installed: "
                    f"`pip install {library.distribution}` compares with it"
                )
            return f"{library.package} cannot be imported: {_reason(error)}"
        try:
            peer = library.build(reading, values)
            theirs = _observe(peer, images)
        except Exception as error:
            return f"{name} does not read this file: {_reason(error)}"
        how = peer.how
        del peer
        ours = _observe(_ours(reading, values), images)
    rows = tuple(_rows(ours, theirs, "logits" if reading.config.classes else "features"))
    if "answer" not in theirs or theirs["answer"].shape != ours["answer"].shape:
        shapes = [" x ".join(map(str, seen["answer"].shape)) for seen in (theirs, ours)]
        return f"{name} reads another model: it answers with {shapes[0]} numbers, not {shapes[1]}"
    return Comparison(library=name, how=how, images=tuple(images.shape), rows=rows)


def _images(reading: Reading, dtype: torch.dtype) -> Tensor:
    config = reading.config
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, config.channels, *config.image_size, generator=draw).to(dtype)


def _ours(reading: Reading, values: Mapping[str, Tensor]) -> Peer:
    with torch.device("meta"):
        model = ViT(reading.config)
    model.load_state_dict(values, assign=True)
    return Peer(model, list(model.blocks), model.norm, model)


@contextmanager
def _aside() -> Iterator[None]:
    """Keep in here what other libraries print, warn of, log and draw at random."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _observe(peer: Peer, images: Tensor) -> dict[str, Tensor]:
    """Run a model, and give the output of each block, the final tokens and the answer."""
    seen: dict[str, Tensor] = {}
    places = {f"block {i}": block for i, block in enumerate(peer.blocks)}

    def watch(where: str, module: nn.Module, entering: bool) -> Any:
        def keep(value: Any) -> None:
            seen[where] = value[0] if isinstance(value, tuple) else value

        if entering:
            return module.register_forward_pre_hook(lambda module, args: keep(args))
        return module.register_forward_hook(lambda module, args, output: keep(output))

    handles = [watch(where, module, peer.entering) for where, module in places.items()]
    handles.append(watch("tokens", peer.norm, False))
    try:
        peer.model.eval()
        seen["answer"] = peer.answer(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _rows(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], answer: str
) -> Iterator[Difference]:
    """Compare what both have in the same form; other libraries may have the batch second."""
    for where, our in ours.items():
        their = theirs.get(where)
        if their is None:
            continue
        if their.ndim == 3 and their.shape != our.shape:
            their = their.transpose(0, 1)
        if their.shape == our.shape:
            yield Difference(
                where=answer if where == "answer" else where,
                difference=float((our - their).abs().max()),
                largest=float(their.abs().max()),
            )


def _reason(error: Exception) -> str:
    """Give what an error says in one sentence that is not too long."""
    text = " ".join(str(error).split()).split(". ")[0]
    text = f"{text[:200]} ..." if len(text) > 200 else text
    return text if isinstance(error, VitrailError) else f"{type(error).__name__}: {text}"
