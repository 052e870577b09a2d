"""Talking to the hub: every request ends, and what goes wrong is told in our words."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from vitrail import __version__
from vitrail.errors import OutputError, VitrailError, WeightsError
from vitrail.weights import disk

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

SECONDS_TO_WRITE = 120  # a large commit is checked over there before it is answered
_ONE_AT_A_TIME = RLock()
TOKEN = "`hf auth login` stores one, or set HF_TOKEN"


class NoAnswer(WeightsError):
    """The hub was not reached or failed: what the cache has may do."""


@contextmanager
def talking(
    repository: str, revision: str | None = None, *, writing: bool = False
) -> "Iterator[HfApi]":
    """Give the hub's client; what fails inside is a `WeightsError`, `OutputError` where writing."""
    from huggingface_hub import HfApi, constants, get_session
    from huggingface_hub.utils import disable_progress_bars

    with _ONE_AT_A_TIME:  # hooks and settings are the process's, not the thread's
        longest = SECONDS_TO_WRITE if writing else constants.HF_HUB_DOWNLOAD_TIMEOUT
        client, telemetry = get_session(), constants.HF_HUB_DISABLE_TELEMETRY
        hooks = client.event_hooks

        def bound(request: Any) -> None:
            # Some of the client's requests wait without a limit, others six times for a minute.
            limits = request.extensions.get("timeout", {})
            shorter = {kind: min(limit or longest, longest) for kind, limit in limits.items()}
            request.extensions["timeout"] = shorter

        client.event_hooks = {**hooks, "request": [*hooks["request"], bound]}
        # Without this it asks the hub for a list of coding agents, to tell it which one runs.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        loud = sys.stderr.isatty() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
        try:
            with nullcontext() if loud else disable_progress_bars():
                yield HfApi(library_name="vitrail", library_version=__version__)
        except VitrailError:
            raise
        except Exception as error:  # nothing but the client's calls runs inside
            raise _told(error, repository, revision, writing) from error
        finally:
            client.event_hooks, constants.HF_HUB_DISABLE_TELEMETRY = hooks, telemetry


def _told(
    error: BaseException, repository: str, revision: str | None, writing: bool
) -> VitrailError:
    """Say what the hub, the network or the disk did, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The client wraps what happened in what it tried instead.
    wrappers = LocalEntryNotFoundError | RuntimeError | ValueError
    while error.__cause__ and isinstance(error, wrappers):
        if isinstance(error, HfHubHTTPError):  # a bad request is a ValueError too
            break
        error = error.__cause__
    kind = OutputError if writing else WeightsError
    hub = constants.ENDPOINT
    if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
        return kind(_refusal(error, f"{hub}/{repository}", revision))
    if "Consistency check" in str(error):
        size = str(error).partition(": ")[2].splitlines()[0].rstrip(".")
        return kind(f"a file of {repository} came incomplete: {size}; try again")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        try:
            with disk.written(Path(constants.HF_HUB_CACHE)):
                raise error
        except OutputError as unwritten:
            return unwritten
    failed = isinstance(error, HfHubHTTPError)
    what = f"HTTP {error.response.status_code}" if failed else type(error).__name__
    return (OutputError if writing else NoAnswer)(
        f"{hub} gives no usable answer for {repository}: {what}: {_line(error)}. Check the "
        "network, and HF_ENDPOINT and the proxy where they are set, or try again later"
    )


def _refusal(error: "HfHubHTTPError", page: str, revision: str | None) -> str:
    """Say why the hub answered with a no."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return (
            f"{page} is gated: only those who were given access may read it. Ask for access on "
            f"that page; then the token is what shows who you are: {TOKEN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f'{page} has no branch, tag or commit "{revision}"; its page lists what it has'
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{page} is not there, or is private. Check the name; what is private needs the token "
            f"of one who may see it: {TOKEN}"
        )
    if status in (401, 403):
        said = "knows no such token" if status == 401 else "gives this token no right to do that"
        return f"the hub {said} (HTTP {status}, {page}): {_line(error)}; {TOKEN}"
    if status == 429:
        return f"the hub had too many requests (HTTP 429, {page}): wait a few minutes"
    return f"the hub refuses (HTTP {status}, {page}): {_line(error)}"


def _line(error: BaseException) -> str:
    """Give what the hub says with an error, or the error itself, in one line."""
    text = getattr(error, "server_message", None) or str(error)
    return " ".join(text.split())[:300].rstrip(".;")
