"""What a tunnel says where no server in the sandbox speaks: a problem document, or the same words as a page for people."""

from __future__ import annotations

import json
from html import escape

from shoal.cluster.api.tunnels.tunnel_visits import COOKIE, Headers, Visit
from shoal.model.errors import QuotaExceeded, ShoalError, Unauthenticated, Unavailable
from shoal.model.http import PROBLEM, problem

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em}}h1{{font-size:1.3em}}small{{opacity:.6}}</style>
<h1>{title}</h1><p>{detail}</p><p><small>{status} {code}</small></p></html>
"""


def error_answer(error: ShoalError, visit: Visit, request_id: str | None) -> tuple[int, Headers, bytes]:
    """Status, headers and body."""
    document = problem(error, request_id)
    if visit.wants_page and not visit.websocket:
        kind = "text/html; charset=utf-8"
        shown = {name: escape(str(document[name])) for name in ("title", "detail", "status", "code")}
        body = _PAGE.format(**shown).encode()
    else:
        kind, body = PROBLEM, json.dumps(document).encode()
    headers: Headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, QuotaExceeded):
        headers.append((b"retry-after", str(max(1, round(error.retry_after or 1))).encode()))
    return document["status"], headers, body


def nothing_listens(visit: Visit) -> Unavailable:
    """The error for a port that refused the connection, with what to do about it."""
    port = visit.target.port
    return Unavailable(
        f"nothing listens on port {port} in sandbox {visit.target.sandbox_id}; start your server there, on 127.0.0.1:{port} or on all "
        "addresses, and load this again",
        port=port,
    )


def cookie_redirect(visit: Visit, token: str, max_age: int) -> tuple[int, Headers, bytes]:
    """Sends a browser on to the URL without the token, which it keeps as a cookie for `max_age` seconds."""
    attributes = [
        f"{COOKIE}={token}",
        f"Path={visit.target.prefix}/",
        f"Max-Age={max_age}",
        "HttpOnly",
        "SameSite=Lax",
        *(["Secure"] if visit.scheme == "https" else []),
    ]
    headers = redirect_headers(visit.target.prefix.encode("ascii") + visit.resource)
    return 303, [*headers, (b"set-cookie", "; ".join(attributes).encode("ascii"))], b""


def slash_redirect(visit: Visit) -> tuple[int, Headers, bytes]:
    """Sends a client on to the tunnel's own `/`, so that relative links stay within."""
    query = b"?" + visit.query if visit.query else b""
    return 308, redirect_headers(visit.target.prefix.encode("ascii") + b"/" + query), b""


def redirect_headers(place: bytes) -> Headers:
    # Two slashes at the start would be another host.
    safe = b"/" + place.lstrip(b"/\\") if place.startswith((b"//", b"/\\")) else place
    return [
        (b"location", safe),
        (b"content-length", b"0"),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]
