"""The verb that answers over HTTP."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrail.engines.names import check_engine
from vitrail.errors import ConfigError, check_counts
from vitrail.verbs.words import Device, Dtype, EngineName, Text, say_choice

Names = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer over HTTP, for programs and, with a page, for people."""

    model: Text  # a run, a bundle, a weight file, hf:OWNER/NAME, timm:NAME or a preset
    host: str = "127.0.0.1"  # this machine alone; any other needs a token
    port: int = 8000  # 0 takes a free one
    token: str | None = None  # what requests must bring; better in VITRAIL_TOKEN, unseen by others
    insecure: bool = False  # other machines may ask without a token
    allow_host: Names = ()  # a name that this server is reached by, such as of a proxy
    engine: EngineName = "auto"  # auto: the fastest here that answers alike
    device: Device = "auto"
    dtype: Dtype = "float32"
    threads: int = 2  # that decode
    batch_size: int = 8  # images that the model takes at once, at most
    wait: float = 1.0  # seconds of work in hand; beyond, a request is refused: 429
    queue: int = 256  # images in hand, whatever the wait
    timeout: float = 30.0  # seconds for a request
    grace: float = 25.0  # seconds that a stop leaves to requests in hand
    max_bytes: int = 32 * 2**20  # of a request
    max_pixels: int = 50_000_000  # of an image
    max_images: int = 64  # of a request

    def run(self) -> int:
        from vitrail.weights.origin import parse as parse_origin

        origin = parse_origin(self.model)
        check_counts(threads=self.threads)
        check_engine(self.engine, self.device)
        token = self.token if self.token is not None else os.environ.get("VITRAIL_TOKEN") or None
        _check_token(token)
        _check_port(self.port)
        try:
            from vitrail.serving.limits import Limits
            from vitrail.serving.server import is_loopback, listen, serve
        except ImportError as error:
            raise ConfigError(
                f"a server needs more packages ({error.name}): pip install 'vitrail[serve]'"
            ) from error
        from vitrail.engines.build import engine
        from vitrail.serving.guard import Access
        from vitrail.weights.loading import load

        limits = Limits(
            batch_size=self.batch_size,
            wait=self.wait,
            queue=self.queue,
            timeout=self.timeout,
            grace=self.grace,
            body=self.max_bytes,
            pixels=self.max_pixels,
            images=self.max_images,
        )
        if not is_loopback(self.host):
            _warn(self.host, token, self.insecure)
        taken = listen(self.host, self.port)
        if origin.kind == "preset":
            print(f"{self.model} has random weights: its answers mean nothing", file=sys.stderr)
        bundle = load(self.model)
        runs = engine(bundle, self.engine, self.dtype, device=self.device)
        say_choice(runs)
        name = self.model if origin.kind in ("preset", "hf", "timm") else _name(Path(self.model))
        names = tuple(name.lower() for name in (self.host, *self.allow_host))
        access = Access(names=names, token=token)
        return serve(
            bundle, runs, taken, name=name, access=access, limits=limits, threads=self.threads
        )


def _name(path: Path) -> str:
    """Name a model by its file or folder, not by where it lies: answers tell nothing of here."""
    path = path.expanduser().resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("best", "last") else path.name


def _check_token(token: str | None) -> None:
    if token is not None and (not token or not token.isascii() or not token.isprintable()):
        raise ConfigError("the token is empty or has signs beyond ASCII: a header cannot hold it")


def _check_port(port: int) -> None:
    if not 0 <= port < 65536:
        raise ConfigError(f"port is {port}; it should be from 0 to 65535")


def _warn(host: str, token: str | None, insecure: bool) -> None:
    """Say that other machines reach this one; raises `ConfigError` where nothing protects it."""
    if token is None and not insecure:
        raise ConfigError(
            f"{host} is reached by other machines: give a token (VITRAIL_TOKEN or --token), which "
            "requests must bring, or --insecure"
        )
    how = "with the token" if token is not None else "without any token"
    print(
        f"warning: other machines reach {host}, and may ask {how}; nothing is encrypted, so put a "
        "proxy with TLS before it",
        file=sys.stderr,
    )
