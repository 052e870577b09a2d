"""What a request is refused with: a status, a word for programs and a sentence for people."""

import json
from typing import Any

JSON = b"application/json"


class Problem(Exception):
    """An answer that is an error: `{code, message}` with an HTTP status."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def body(self) -> bytes:
        """Give the JSON of the answer."""
        return as_json({"code": self.code, "message": self.message})


def as_json(values: Any) -> bytes:
    """Give values as JSON; a letter that UTF-8 has no place for as its escape."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace")


def busy(seconds: float) -> Problem:
    """Refuse because there is more work in hand than the wait allows."""
    later = str(max(1, round(seconds)))
    return Problem(
        429,
        "busy",
        f"there is work for {seconds:.1f} s in hand; try again later",
        retry_after=later,
    )


def stopping() -> Problem:
    """Refuse because the server is on its way out."""
    return Problem(503, "stopping", "this server is stopping; ask another one", retry_after="1")


def late(seconds: float) -> Problem:
    """Give up on a request whose time is over."""
    return Problem(503, "late", f"no answer within {seconds:g} s; try again", retry_after="1")
