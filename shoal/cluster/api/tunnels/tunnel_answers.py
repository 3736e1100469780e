"""What a server in a sandbox answers, made fit for the client: paths and cookies below the tunnel's prefix, nothing that reaches beyond. Pure.

By path all tunnels share the API's origin. What a page does there with scripts is not ours to prevent; that a single header does it for a
whole origin is.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from shoal.cluster.api.tunnels.tunnel_visits import COOKIE, Headers, Visit, hop_by_hop

_ORIGIN_WIDE = frozenset(
    {
        *(b"service-worker-allowed", b"clear-site-data", b"strict-transport-security", b"public-key-pins"),
        *(b"origin-agent-cluster", b"nel", b"report-to", b"reporting-endpoints", b"expect-ct"),
    }
)
_NEVER = frozenset({b"alt-svc", b"x-request-id", b"date"})
"""Of any answer: one would lead clients past us, the others are ours to give."""

_PLACES = frozenset({b"location", b"content-location"})
_SANDBOXED = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
_OF_SOCKETS = (b"sec-websocket-", b"content-length", b"content-type", b"date", b"server")


def response_headers(headers: Headers, visit: Visit, *, confine: bool) -> Headers:
    """The headers for the client. `confine`: tunnels have a domain of their own, so a page that is asked for by path gets no origin at all."""
    dropped = hop_by_hop(headers) | _NEVER
    prefix = visit.target.prefix
    if prefix:
        dropped |= _ORIGIN_WIDE
    out: Headers = []
    for name, value in headers:
        if name in dropped:
            continue
        if name == b"set-cookie":
            cookie = _cookie(value, prefix)
            if cookie is None:
                continue
            value = cookie
        elif name in _PLACES and prefix:
            value = _place(value, visit)
        out.append((name, value))
    if prefix and confine:
        out.append((b"content-security-policy", _SANDBOXED))
    return out


def socket_headers(headers: Headers, visit: Visit) -> Headers:
    """As `response_headers`, for the answer that opens a WebSocket."""
    return [pair for pair in response_headers(headers, visit, confine=False) if not pair[0].startswith(_OF_SOCKETS)]


def _cookie(value: bytes, prefix: str) -> bytes | None:
    """A cookie for this tunnel only: no `Domain`, and its path below the prefix. None for one that would take the place of ours."""
    first, *attributes = value.split(b";")
    if first.partition(b"=")[0].strip() == COOKIE.encode():
        return None
    kept = [first.strip()]
    for attribute in attributes:
        name, _, content = attribute.strip().partition(b"=")
        if name.strip().lower() == b"domain":
            continue
        if name.strip().lower() == b"path" and prefix:
            content = content.strip()
            inside = content if content.startswith(b"/") else b"/"
            attribute = b"Path=" + (inside if _below(inside, prefix.encode()) else prefix.encode() + inside)
        kept.append(attribute.strip())
    return b"; ".join(kept)


def _place(value: bytes, visit: Visit) -> bytes:
    """A URL of the server's own, under the tunnel's prefix. One that leads elsewhere stays as it is."""
    prefix = visit.target.prefix
    text = value.decode("latin-1").strip()
    try:
        parts = urlsplit(text)
    except ValueError:
        return value
    if parts.netloc:
        own = {visit.host.lower(), *(f"{name}:{visit.target.port}" for name in ("localhost", "127.0.0.1", "[::1]"))}
        if parts.scheme not in ("", "http", "https") or parts.netloc.lower() not in own:
            return value
        rest = text[text.index("//") + 2 + len(parts.netloc) :]
    elif parts.scheme or not text.startswith("/"):
        return value
    else:
        rest = text
    if not rest.startswith("/"):
        rest = f"/{rest}"
    if not _below(urlsplit(rest if not rest.startswith("//") else "/").path.encode("latin-1"), prefix.encode()):
        rest = prefix + rest
    return rest.encode("latin-1")


def _below(path: bytes, prefix: bytes) -> bool:
    return path == prefix or path.startswith(prefix + b"/")
