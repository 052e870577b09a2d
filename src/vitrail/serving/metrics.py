"""Counts of what a server does, as Prometheus reads them (text format 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from vitrail import __version__
from vitrail.serving.batcher import Batch
from vitrail.serving.gate import Gate

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """How often a value was at most each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        so_far, before = 0, f"{labels}," if labels else ""
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            yield f'{name}_bucket{{{before}le="{bound}"}} {so_far}'
        of = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{of} {self.sum:.6f}"
        yield f"{name}_count{of} {so_far}"


class Metrics:
    """All counts of a server; paths are those of our own routes, so that they are few."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.images: Counter[tuple[str, str]] = Counter()  # by kind of work, and ok or error
        self.seconds: dict[str, Histogram] = {}
        self.batch_sizes: dict[str, Histogram] = {}
        self.batch_seconds: dict[str, Histogram] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests[path, status] += 1
        self.seconds.setdefault(path, Histogram(_SECONDS)).add(seconds)

    def batch(self, batch: Batch) -> None:
        """Count a batch that the model ran."""
        self.batch_sizes.setdefault(batch.kind, Histogram(_SIZES)).add(batch.size)
        self.batch_seconds.setdefault(batch.kind, Histogram(_SECONDS)).add(batch.seconds)

    def text(self, gate: Gate) -> str:
        """Give everything as a page for Prometheus."""
        return "\n".join([*self._lines(gate), ""])

    def _lines(self, gate: Gate) -> Iterator[str]:
        yield from _head("vitrail_info", "gauge", "The version that runs.")
        yield f'vitrail_info{{version="{__version__}"}} 1'
        yield from _head("vitrail_requests_total", "counter", "Requests, by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'vitrail_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("vitrail_images_total", "counter", "Images, by work and outcome.")
        for (kind, outcome), count in sorted(self.images.items()):
            yield f'vitrail_images_total{{work="{kind}",outcome="{outcome}"}} {count}'
        for name, about, label, found in (
            ("vitrail_request_seconds", "From a request to its answer.", "path", self.seconds),
            ("vitrail_batch_images", "Images of a batch.", "work", self.batch_sizes),
            ("vitrail_batch_seconds", "What a batch took.", "work", self.batch_seconds),
        ):
            yield from _head(name, "histogram", about)
            for value, histogram in sorted(found.items()):
                yield from histogram.lines(name, f'{label}="{value}"')
        for name, about, number in (
            ("vitrail_requests_in_hand", "Requests that wait for an answer.", gate.requests),
            ("vitrail_images_in_hand", "Images of them.", sum(gate.in_hand.values())),
            ("vitrail_bytes_in_hand", "Bytes of their bodies.", gate.bytes),
            ("vitrail_expected_seconds", "What the images in hand will take.", gate.expected),
        ):
            yield from _head(name, "gauge", about)
            yield f"{name} {number:.6g}"


def _head(name: str, kind: str, about: str) -> tuple[str, str]:
    return f"# HELP {name} {about}", f"# TYPE {name} {kind}"
