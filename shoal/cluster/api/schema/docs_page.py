"""`/docs`: the OpenAPI document as a page, by Swagger UI, served from this machine only.

Users type tokens into this page. So it runs no third-party code, connects only to its own API, and forgets the token
when it is closed: pages of sandboxes that share the API's origin could read what a browser stores.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import fastapi
from starlette.responses import FileResponse, Response

from shoal.cluster.api.request.route import new_router
from shoal.model.errors import NotFound

# Addresses are relative: a proxy may serve the API below a path.
_PAGE = b"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Shoal: the HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/begin.js"></script>
</body>
</html>
"""
_BEGIN = b"""\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // it would send the document to strangers
});
"""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

Name = Annotated[str, fastapi.Path(max_length=64)]


"""The page and what it is made of."""
router = new_router("docs")


@router.get("/docs", include_in_schema=False)
async def page() -> Response:
    return Response(_PAGE, media_type="text/html", headers=_HEADERS)


@router.get("/docs/{name}", include_in_schema=False)
async def asset(name: Name) -> Response:
    if name == "begin.js":
        return Response(_BEGIN, media_type="text/javascript", headers=_HEADERS)
    if name not in _ASSETS:
        raise NotFound(f"/docs/{name!a}: the page has no such part; see /docs")
    return FileResponse(_folder() / name, media_type=_ASSETS[name], headers=_HEADERS)


@functools.cache
def _folder() -> Path:
    return Path(str(files("fastapi_offline"))) / "static"
