"""The body of a request: read within bounds, into memory alone, and taken apart."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vitrail.serving.gate import Room
from vitrail.serving.limits import Limits
from vitrail.serving.problem import Problem

FIELD = "images"
_NAME = 200  # letters of a file's name that an answer repeats


class Upload(NamedTuple):
    """One image as it came: what the request calls it, and its bytes."""

    name: str
    data: bytes


def media_type(request: Request) -> tuple[str, str]:
    """Give what a body is, and its boundary; raises `Problem` where it can be no image."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    name = kind.decode("latin-1").lower()
    if name == "multipart/form-data":
        if not (boundary := options.get(b"boundary", b"").decode("latin-1")):
            raise Problem(400, "no_boundary", "the Content-Type has no boundary")
        return name, boundary
    if not name.startswith("image/") or name == "image/":
        said = f'"{name[:_NAME]}"' if name else "absent"
        wanted = "an image type, such as image/jpeg, or multipart/form-data"
        raise Problem(415, "media_type", f"the Content-Type is {said}; it should be {wanted}")
    return name, ""


async def read(request: Request, room: Room, limits: Limits, deadline: float) -> bytes:
    """Give the whole body; raises `Problem` where it is too large, too slow, or breaks off."""
    parts: list[bytes] = []
    loop = asyncio.get_running_loop()
    stream = request.stream()
    while True:
        left = min(limits.idle, deadline - loop.time())
        try:
            piece = await asyncio.wait_for(anext(stream, None), left)
        except TimeoutError:
            raise Problem(
                408, "slow", "the body did not come in time", connection="close"
            ) from None
        except ClientDisconnect:
            raise Problem(400, "broken_off", "the body broke off", connection="close") from None
        if piece is None:
            return b"".join(parts)
        room.take(len(piece))
        if piece:
            parts.append(piece)


def uploads(body: bytes, boundary: str, most: int) -> list[Upload]:
    """Give the images of a body, in order; raises `Problem` for none, or more than `most`."""
    if not boundary:
        found = [Upload("image", body)] if body else []
    else:
        found = _fields(body, boundary, most)
    if not found:
        wanted = f'fields named "{FIELD}"' if boundary else "the bytes of an image"
        raise Problem(400, "no_image", f"there is no image in the request; it should have {wanted}")
    return found


def _fields(body: bytes, boundary: str, most: int) -> list[Upload]:
    """Take a form apart; `ends` of parts are where python-multipart says that they are."""
    found: list[Upload] = []
    parts = _Parts(found, most)
    try:
        parser = MultipartParser(boundary, parts.callbacks(), max_header_count=16)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "bad_form", f"the form cannot be read: {error}") from None
    if not parts.ended:
        raise Problem(400, "bad_form", "the form breaks off before its last boundary")
    return found


class _Parts:
    """The parts of a form as they come; a field of another name than ours is refused."""

    def __init__(self, found: list[Upload], most: int) -> None:
        self.found, self.most, self.ended = found, most, False
        self._begin()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self.field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._named,
            "on_part_data": lambda data, start, end: self.data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._over,
        }

    def _begin(self) -> None:
        self.field, self.value, self.headers = bytearray(), bytearray(), dict[bytes, bytes]()
        self.data: list[bytes] = []
        self.name = ""

    def _header(self) -> None:
        self.headers[bytes(self.field).lower()] = bytes(self.value)
        self.field, self.value = bytearray(), bytearray()

    def _named(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            raise Problem(
                400, "no_field", f'there is a field "{field[:_NAME]}"; images are fields "{FIELD}"'
            )
        if len(self.found) == self.most:
            raise Problem(413, "too_many", f"a request may bring {self.most} images at most")
        name = options.get(b"filename", b"").decode("utf-8", "replace")[:_NAME]
        self.name = name or f"image {len(self.found)}"

    def _end(self) -> None:
        self.found.append(Upload(self.name, b"".join(self.data)))

    def _over(self) -> None:
        self.ended = True
