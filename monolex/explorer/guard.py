"""Who may ask the server, and what its pages may do: a plain ASGI layer before every route.

The server listens on the loopback interface alone, but every page in the browser of the same machine can send requests
there. So a request must name a loopback host (another name may have been pointed at us: DNS rebinding), must not come
from a page of another origin, and one that changes something must say its origin. Pages load nothing from elsewhere.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
)
"""Of pages that open from disk too, and hold their script and style."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@final
class Guard:
    """Refuses what comes from elsewhere and adds the headers that keep pages to themselves."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if why := refusal(scope["method"], headers):
            await PlainTextResponse(why, 403, HEADERS)(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                added = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known
                ]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self.app(scope, receive, guarded)


def refusal(method: str, headers: MutableMapping[str, str]) -> str:
    """Why a request is refused, in one sentence; empty if it is not."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _name(host) not in LOOPBACK:
        return f"host {host!r} is not this machine: open the address that monolex serve prints"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # a link from elsewhere may be followed, for it only shows a page
        navigates = (
            method == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if not navigates:
            return "pages of another site may not read or write this one"
    if origin is not None and origin != f"http://{host}":
        return f"origin {origin!r} is another site, which may not read or write this one"
    if method not in ("GET", "HEAD") and origin is None:
        return "a request that changes something must say its origin"
    return ""


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
