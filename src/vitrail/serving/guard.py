"""What stands before the application: who may ask, from where, and what every answer carries.

- `Host`: a page of another site can have its own name point here (DNS rebinding), but then it is
  its name that the browser sends. Addresses, localhost and the names that were allowed pass.
- `Origin` and `Sec-Fetch-Site`: no other site may ask from a visitor's browser.
- The token, compared in a time that tells nothing.
"""

import hmac
import time
import traceback
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.serving.gate import Gate
from vitrail.serving.log import Log
from vitrail.serving.metrics import Metrics
from vitrail.serving.problem import JSON, Problem

# Of no secret: the page asks for the token, and whoever watches the server has none.
OPEN = ("/", "/health", "/ready", "/openapi.json")
PAGE = "/page/"
PATHS = ("/v1/predict", "/v1/embed", "/v1/explain", "/v1/model", "/metrics", *OPEN)

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Who may ask: the names that this server answers to, and the token, where there is one."""

    names: tuple[str, ...] = ()  # beside localhost and any address
    token: str | None = None

    def check(self, scope: Scope) -> None:
        """Raise `Problem` for a request that may not ask."""
        headers, path = Headers(scope=scope), scope["path"]
        host = _one(headers, "host").lower()
        if not self._is_ours(_name(host)):
            raise Problem(421, "host", "this server does not answer to that host; see --allow-host")
        is_page = path in OPEN or path.startswith(PAGE)
        origin = headers.getlist("origin")
        if origin and (len(origin) > 1 or origin[0].lower().partition("://")[2] != host):
            raise Problem(403, "cross_site", "another site may not ask this server")
        site = headers.get("sec-fetch-site", "none")
        if not is_page and site not in ("none", "same-origin"):
            raise Problem(403, "cross_site", "another site may not ask this server")
        if self.token is not None and not is_page:
            kind, _, given = _one(headers, "authorization").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1"), self.token.encode())
            if kind.lower() != "bearer" or not same:
                raise Problem(
                    401,
                    "token",
                    "this server wants its token, as Authorization: Bearer TOKEN",
                    www_authenticate="Bearer",
                )

    def _is_ours(self, name: str) -> bool:
        return name == "localhost" or name in self.names or _is_address(name)


def _one(headers: Headers, name: str) -> str:
    """Give a header that stands once; two of it are as bad as none."""
    found = headers.getlist(name)
    return found[0] if len(found) == 1 else ""


def _name(host: str) -> str:
    """Give the name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """The outermost part of the application."""

    def __init__(
        self, app: ASGIApp, access: Access, gate: Gate, metrics: Metrics, log: Log
    ) -> None:
        self.app, self.access, self.gate, self.metrics, self.log = app, access, gate, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a lifespan there is none of, nor a WebSocket
            return
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        failed: str | None = None
        try:
            self.access.check(scope)
            await self._run(scope, receive, answer)
        except Problem as problem:
            await refuse(problem, answer)
        except Exception:  # of ours; the answer tells no more than that
            failed = traceback.format_exc()
            if not status:
                await refuse(internal(), answer)
        self._tell(scope, status, time.monotonic() - began, failed)

    async def _run(self, scope: Scope, receive: Receive, answer: Send) -> None:
        path = scope["path"]
        if not path.startswith("/v1/") or path == "/v1/model":
            await self.app(scope, receive, answer)
            return
        if scope["method"] == "POST":
            self.gate.check()  # here, where a refusal costs least
        with self.gate.request():
            await self.app(scope, receive, answer)

    def _tell(self, scope: Scope, status: int, seconds: float, failed: str | None) -> None:
        known = scope["path"] in PATHS
        self.metrics.request(scope["path"] if known else "other", status, seconds)
        path = scope["path"][:200]
        values = {"method": scope["method"], "path": path, "status": status}
        values |= {"seconds": round(seconds, 4), "client": (scope.get("client") or ("",))[0]}
        if failed is not None:
            self.log("request", "error", **values, trace=failed)
        elif path not in ("/health", "/ready", "/metrics"):  # asked for every few seconds
            self.log("request", "info", **values, **scope.get("vitrail", {}))


def internal() -> Problem:
    """Give the answer to a request that met a defect of ours."""
    return Problem(500, "internal", "the server failed; its log says why")


async def refuse(problem: Problem, send: Send) -> None:
    """Answer with an error."""
    body = problem.body()
    headers = [(b"content-type", JSON), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
