"""Embeddings of a whole data set: into a file, and what they say about its images."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.listing import one_line
from vitrail.errors import DataError
from vitrail.inference.embed import Embedded
from vitrail.inference.embedding_files import embeddings_writer
from vitrail.inference.neighbours import Neighbours, neighbours
from vitrail.inference.probes import Probe, probe
from vitrail.model.page import aligned

_SHOWN = 20  # lines of a list on the page; --json has all


class Collected(NamedTuple):
    """The images whose embeddings were computed, and those that could not be read."""

    names: list[str]
    labels: list[str | None]
    vectors: np.ndarray | None  # N D, where they were kept
    size: tuple[int, ...]  # of one embedding
    bad: list[tuple[str, str]]


def collect(found: Iterable[Embedded], output: str | None, keep: bool) -> Collected:
    """Take embeddings batch by batch, into a file where one is named, into memory with `keep`.

    Raises `DataError` where no image can be read; then no file is written either.
    """
    names: list[str] = []
    labels: list[str | None] = []
    bad: list[tuple[str, str]] = []
    parts, size = [], ()
    with ExitStack() as open:
        write = open.enter_context(embeddings_writer(output)) if output else None
        for batch in found:
            bad += [(item.name, reason) for item, reason in batch.bad]
            if not batch.items:
                continue
            size = batch.vectors.shape[1:]
            names += [item.name for item in batch.items]
            labels += [item.label for item in batch.items]
            if write:
                write(batch)
            if keep:
                parts.append(batch.vectors)
        if not names:
            raise DataError(f"none of the {len(bad)} images can be read: {bad[0][1]}")
    return Collected(names, labels, np.concatenate(parts) if keep else None, size, bad)


class Insight(NamedTuple):
    """What embeddings say: which images are alike, and whether they tell the classes apart."""

    collected: Collected
    neighbours: Neighbours | None
    probes: tuple[Probe, ...]
    split: str = "all"  # which images of the data they are

    def to_json(self) -> dict[str, Any]:
        """Give plain values, in the form of `vitrail embed --json`."""
        names, bad = self.collected.names, self.collected.bad
        values: dict[str, Any] = {
            "images": len(names),
            "split": self.split,
            "failed": len(bad),
            "size": list(self.collected.size),
            "bad": [{"path": path, "reason": reason} for path, reason in bad],
        }
        if near := self.neighbours:
            values["neighbours"] = [
                {"path": names[row], "nearest": self._nearest(row)} for row in range(len(names))
            ]
            values["near_duplicates"] = [
                {"paths": [names[a], names[b]], "similarity": s} for a, b, s in near.duplicates
            ]
            values["near_duplicates_in_all"] = near.duplicates_in_all
        if self.probes:
            values["probes"] = [found._asdict() for found in self.probes]
        return values

    def text(self) -> str:
        """Give the same as a page of text."""
        names, size = self.collected.names, " x ".join(map(str, self.collected.size))
        part = "" if self.split == "all" else f" ({self.split})"
        lines = [f"{len(names):,} images{part}, {size} numbers each"]
        if near := self.neighbours:
            lines += ["", "nearest:"]
            for row in range(min(len(names), _SHOWN)):
                found = (f"{one_line(n['path'])} {n['similarity']:.3f}" for n in self._nearest(row))
                lines.append(f"  {one_line(names[row])}: {'  '.join(found)}")
            if len(names) > _SHOWN:
                lines.append(f"  ... the first {_SHOWN} of {len(names):,}; --json has all")
            lines += ["", f"near duplicates: {near.duplicates_in_all:,} pairs"]
            lines += [
                f"  {s:.4f}  {one_line(names[a])} = {one_line(names[b])}"
                for a, b, s in near.duplicates[:_SHOWN]
            ]
        if self.probes:
            lines += ["", *_probe_lines(self.probes)]
            part = "all splits" if self.split == "all" else f"split {self.split}"
            lines.append(f"probed on {self.probes[0].images:,} images: {part}")
        return "\n".join(lines)

    def _nearest(self, row: int) -> list[dict[str, Any]]:
        assert self.neighbours is not None
        rows, values = self.neighbours.rows[row], self.neighbours.similarities[row]
        pairs = zip(rows.tolist(), values.tolist(), strict=True)
        return [{"path": self.collected.names[i], "similarity": value} for i, value in pairs]


def insight(
    found: Collected,
    count: int | None,
    threshold: float,
    with_probe: bool,
    split: str = "all",
) -> Insight:
    """Look for the `count` nearest neighbours of each image, and probe by its labels, as asked."""
    near = probes = None
    if count is not None:
        assert found.vectors is not None
        near = neighbours(found.vectors, count, threshold)
    if with_probe:
        assert found.vectors is not None
        probes = probe(found.vectors, np.array([label or "" for label in found.labels]))
    return Insight(found, near, probes or (), split)


def _probe_lines(probes: Sequence[Probe]) -> list[str]:
    rows: list[tuple[str, ...]] = [("probe", "accuracy", "95 % interval", "chosen")]
    for found in probes:
        low, high = found.interval
        letter = "k" if found.name == "kNN" else "C"
        chosen = ", ".join(f"{value:g}" for value in found.chosen)
        interval = f"{low:.1%} to {high:.1%}"
        rows.append((found.name, f"{found.accuracy:.2%}", interval, f"{letter} {chosen}"))
    note = f"each image was answered for by a fit to the other {probes[0].folds - 1} of "
    return [*aligned(rows), f"{note}{probes[0].folds} folds; k and C were chosen inside of it"]
