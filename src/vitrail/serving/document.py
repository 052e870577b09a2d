"""How the OpenAPI document describes a route: what it takes, gives, and refuses with."""

from typing import Any

from vitrail.serving import schema

_IMAGE = {"type": "string", "format": "binary"}
_FORMATS = "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff"
_BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": _IMAGE | {"minLength": 1}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"images": {"type": "array", "items": _IMAGE, "minItems": 1}},
                "required": ["images"],
                "additionalProperties": False,
            },
            "encoding": {"images": {"contentType": _FORMATS}},
        },
    },
}
_WHY = {
    400: "There is no image in the request, or it cannot be read.",
    401: "The token is wrong or missing.",
    403: "The request comes from a page of another site.",
    404: "There is no such class.",
    408: "The body came too slowly.",
    413: "The body is too large, or brings too many images.",
    415: "The body is no image and no form.",
    421: "The server does not answer to this host.",
    422: "A parameter is wrong, or the only image cannot be read.",
    429: "There is more work in hand than may wait.",
    500: "The server failed.",
    503: "The server is stopping, or the answer took too long.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of a route."""
    return {status: {"model": schema.Error, "description": _WHY[status]} for status in statuses}


def work(about: str, answer: type, who: list[Any]) -> dict[str, Any]:
    """Describe a route that takes images; `who` is what checks who asks."""
    return {
        "summary": about,
        "responses": {200: {"model": answer}, **refusals(*_WHY)},
        "openapi_extra": {"requestBody": _BODY},
        "dependencies": who,
    }


def told(about: str, answer: type, *statuses: int) -> dict[str, Any]:
    """Describe a route that tells something of the server."""
    return {"summary": about, "responses": {200: {"model": answer}, **refusals(421, *statuses)}}
