"""Serves the dashboard: one page for all its addresses, and its scripts and styles.

The page asks the API for everything else, as any client does. Its policy lets it run nothing but these scripts and
speak with nobody but its own origin. Scripts and styles have a digest of their content in their names, so that
browsers keep them for good.
"""

from __future__ import annotations

import functools
import re
import secrets
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from shoal.cluster.api.request.context import context_of
from shoal.cluster.api.request.problems import answer
from shoal.model.errors import FailedPrecondition, NotFound

STATIC = Path(__file__).parent / "static"
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.(?:js|css|svg|woff2)")
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
_SAFE = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[BaseRoute]:
    """The page's addresses: each can be shared."""
    paths = ("/", "/sign-in", "/e/{rest:path}", "/cluster/{rest:path}")
    return [Route("/assets/{name}", _asset), *(Route(path, _page) for path in paths)]


async def _page(request: Request) -> Response:
    text = _index()
    if text is None:
        missing = FailedPrecondition(
            "the dashboard is not built here; `python hatch_build.py` or `make venv` builds it", state="not_built"
        )
        return answer(missing, context_of(request).request_id)
    # The terminal sets its colours and sizes by style elements; those that have this nonce count.
    nonce = secrets.token_urlsafe(16)
    # Addresses are relative: a proxy may serve the API below a path.
    path: bytes = request.scope.get("raw_path") or b"/"
    root = "../" * (path.count(b"/") - 1) or "./"
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": policy, "X-Frame-Options": "DENY", **_SAFE}
    body = text.replace("%ROOT%", root).replace("%NONCE%", nonce)
    return Response(body, media_type="text/html", headers=headers)


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    path = STATIC / "assets" / name
    if not _NAME.fullmatch(name) or not path.is_file():
        return answer(NotFound(f"/assets/{name!a:.100}: there is no such file"), context_of(request).request_id)
    headers: dict[str, Any] = {
        "Cache-Control": "public, max-age=31536000, immutable",
        "Vary": "Accept-Encoding",
        **_SAFE,
    }
    packed = path.with_name(f"{name}.gz")
    if "gzip" in request.headers.get("accept-encoding", "") and packed.is_file():
        path = packed
        headers["Content-Encoding"] = "gzip"
    return FileResponse(path, media_type=_TYPES[Path(name).suffix], headers=headers)


@functools.cache
def _index() -> str | None:
    try:
        return (STATIC / "index.html").read_text("utf-8")
    except FileNotFoundError:
        return None
