"""A request to a tunnel, taken apart: where it leads, what it offers to be let in, and what of it goes on. Pure.

Nothing that opens Shoal's own doors goes on: connect tokens (header, query, cookie) and API tokens are taken out, needed or not.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit

from shoal.model import access
from shoal.model.http import BEARER_SUBPROTOCOL, SUBPROTOCOL
from shoal.model.tunnels import TOKEN_HEADER, TOKEN_PARAMETER, Target, target_of_host, target_of_path

Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

COOKIE = "shoal_tunnel"

_MAX_COOKIES = 4  # of our name: a page of the same origin may have set others beside the right one
_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"),
    }
)
_OURS = frozenset(
    {
        *(TOKEN_HEADER.lower().encode(), b"forwarded", b"x-real-ip", b"x-request-id"),
        b"x-request-disconnect-disabled",  # between HAProxy and Serve
    }
)
_SAFE = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Offered:
    """What a request brings along to be let in. `own_page`: whether it comes from the tunnel's own pages or from the address bar, so that
    a browser's cookie says something about who wanted it."""

    header: str | None
    query: str | None
    cookies: tuple[str, ...]
    api_token: str | None
    own_page: bool

    @property
    def nothing(self) -> bool:
        return self.header is None and self.query is None and not self.cookies and self.api_token is None


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, as it goes on. `path` and `query` as the server inside sees them; `headers` in lower case, without the hop's own.

    `host`: what the client calls us; `scheme`: how it reaches us, `http` or `https`; `subprotocols`: those that a WebSocket offers.
    """

    target: Target
    method: str
    path: bytes
    query: bytes
    host: str
    scheme: str
    headers: Headers
    offered: Offered
    websocket: bool = False
    chunked: bool = False
    subprotocols: tuple[str, ...] = ()
    accepts_api: bool = False  # it offers our own subprotocol, which carried the token, and wants to hear of it
    no_slash: bool = False  # the prefix itself was asked for: relative links would lead out of the tunnel

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def resource(self) -> bytes:
        """Path and query, as they stand in the request's first line."""
        return self.path + (b"?" + self.query if self.query else b"")

    @property
    def wants_page(self) -> bool:
        return b"text/html" in (self.header(b"accept") or b"")


def visit_of(scope: Scope, domain: str | None, public_scheme: str | None) -> Visit | None:
    """The visit that an ASGI scope describes; None where it is not a tunnel's. `domain`: the setting `api.tunnel_domain`; `public_scheme`:
    how clients reach the API where that is known, as behind a proxy that speaks TLS."""
    host = _host(scope)
    raw_path = _raw_path(scope)
    target = None if domain is None else target_of_host(host, domain)
    if target is None:
        target = target_of_path(raw_path)
    if target is None:
        return None
    websocket = scope["type"] == "websocket"
    scheme = public_scheme or ("https" if scope["scheme"] in ("https", "wss") else "http")
    path = raw_path.removeprefix(target.prefix.encode("ascii"))
    query, query_token = _without_token(scope.get("query_string", b""))
    headers: Headers = [(name.lower(), value) for name, value in scope["headers"]]
    method = "GET" if websocket else str(scope["method"])
    subprotocols = tuple(scope.get("subprotocols") or ())
    carries_token = _token_among(subprotocols) is not None
    kept, cookies = _split_cookies(headers)
    origin = _text(headers, b"origin")
    offered = Offered(
        header=_text(headers, TOKEN_HEADER.lower().encode()),
        query=query_token,
        cookies=cookies,
        api_token=_api_token(headers, subprotocols),
        own_page=_from_own_page(headers, method, origin, f"{scheme}://{host}", websocket),
    )
    return Visit(
        target=target,
        method=method,
        path=path or b"/",
        query=query,
        host=host,
        scheme=scheme,
        headers=[*_passed_on(kept), *_forwarded(target, host, scheme, scope.get("client"))],
        offered=offered,
        websocket=websocket,
        chunked=any(name == b"transfer-encoding" for name, _ in headers),
        subprotocols=tuple(name for name in subprotocols if not (carries_token and _is_ours(name))),
        accepts_api=carries_token and SUBPROTOCOL in subprotocols,
        no_slash=not path,
    )


def hop_by_hop(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The names of the headers that are about this connection only, those that `Connection` names among them."""
    named = [value for name, value in headers if name == b"connection"]
    return _HOP_BY_HOP | {token.strip().lower() for value in named for token in value.split(b",")}


def _passed_on(headers: Headers) -> Headers:
    """Without the hop's own headers, ours, and what the client says about the way that it came."""
    dropped = hop_by_hop(headers) | _OURS
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    return [
        (name, value)
        for name, value in headers
        if name not in dropped
        and not name.startswith(b"x-forwarded-")
        and not (name == b"authorization" and _bearer(value) is not None)
        and not (name == b"content-length" and chunked)  # of two lengths the one that a server must heed
    ]


def _forwarded(target: Target, host: str, scheme: str, client: tuple[str, int] | None) -> Headers:
    said = [(b"x-forwarded-host", host), (b"x-forwarded-proto", scheme)]
    if client is not None:
        said.append((b"x-forwarded-for", client[0]))
    if target.prefix:
        said.append((b"x-forwarded-prefix", target.prefix))
    return [(name, value.encode("latin-1", "replace")) for name, value in said]


def _from_own_page(headers: Headers, method: str, origin: str | None, own: str, websocket: bool) -> bool:
    """Browsers send cookies along for whoever makes them ask; only what the tunnel's own pages ask for counts, and plain visits."""
    if websocket:
        return origin is None or origin == own
    if origin is not None and origin != own:
        return False
    site = _text(headers, b"sec-fetch-site")
    if site in (None, "same-origin", "none"):
        return True
    return method in _SAFE and _text(headers, b"sec-fetch-mode") == "navigate"


def _without_token(query: bytes) -> tuple[bytes, str | None]:
    """The query without connect tokens, and the first of those."""
    parts = query.split(b"&") if query else []
    tokens, kept = [], []
    for part in parts:
        name, _, value = part.decode("latin-1").partition("=")
        if unquote_plus(name) == TOKEN_PARAMETER:
            tokens.append(unquote_plus(value))
        else:
            kept.append(part)
    return b"&".join(kept), tokens[0] if tokens else None


def _split_cookies(headers: Headers) -> tuple[Headers, tuple[str, ...]]:
    """The headers with all cookies but ours, and the values of ours."""
    kept: Headers = []
    ours: list[str] = []
    for name, value in headers:
        if name == b"cookie":
            others = []
            for pair in value.split(b";"):
                key, _, content = pair.strip().partition(b"=")
                if key == COOKIE.encode():
                    ours.append(content.decode("latin-1"))
                elif pair.strip():
                    others.append(pair.strip())
            if not others:
                continue
            value = b"; ".join(others)
        kept.append((name, value))
    return kept, tuple(ours[:_MAX_COOKIES])


def _api_token(headers: Headers, subprotocols: tuple[str, ...]) -> str | None:
    for name, value in headers:
        if name == b"authorization" and (token := _bearer(value)) is not None:
            return token
    return _token_among(subprotocols)


def _token_among(subprotocols: tuple[str, ...]) -> str | None:
    """Browsers cannot set headers of WebSockets: the API's token comes as a subprotocol."""
    found = (name.removeprefix(BEARER_SUBPROTOCOL) for name in subprotocols if name.startswith(BEARER_SUBPROTOCOL))
    return next(found, None)


def _is_ours(subprotocol: str) -> bool:
    return subprotocol == SUBPROTOCOL or subprotocol.startswith(BEARER_SUBPROTOCOL)


def _bearer(value: bytes) -> str | None:
    """An API token of Shoal's; any other authorisation is the application's own business."""
    kind, _, token = value.decode("latin-1").strip().partition(" ")
    token = token.strip()
    return token if kind.lower() == "bearer" and access.split(token) is not None else None


def _text(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _host(scope: Scope) -> str:
    host = _text([(name.lower(), value) for name, value in scope["headers"]], b"host") or "localhost"
    try:
        # Whoever sends nonsense here would find it again in redirects and pages.
        return host if urlsplit(f"//{host}").netloc == host and host.isascii() and host.isprintable() else "localhost"
    except ValueError:
        return "localhost"


def _raw_path(scope: Scope) -> bytes:
    raw = scope.get("raw_path")
    return bytes(raw) if raw else quote(str(scope["path"])).encode("ascii")
