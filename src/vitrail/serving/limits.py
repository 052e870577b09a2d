"""What a server bears: how much it takes in, how long it works, when it says no."""

from dataclasses import dataclass

from vitrail.errors import ConfigError, check_range, check_types


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Every bound of a server; sizes in bytes, times in seconds."""

    batch_size: int = 8  # images that the model takes at once, at most
    queue: int = 256  # images in hand, whatever the wait
    wait: float = 1.0  # that the work in hand may take; beyond it a request is refused
    timeout: float = 30.0  # for a request, from its first byte to its answer
    idle: float = 5.0  # between two pieces of a body
    header: float = 10.0  # for the head of a request
    grace: float = 25.0  # that a stop leaves to requests in hand
    body: int = 32 * 2**20  # of one request
    bodies: int = 256 * 2**20  # of all requests together
    pixels: int = 50_000_000  # of one image: a photo of 8,600 x 5,800
    images: int = 64  # of one request
    connections: int = 512

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "batch_size queue body bodies pixels images connections", 1)
        check_range(self, "wait timeout idle header grace", 0, 86_400, open_low=True)
        if self.images > self.queue:
            raise ConfigError(
                f"a request may bring {self.images} images, but only {self.queue} fit the queue; "
                "raise the queue or lower the images"
            )
