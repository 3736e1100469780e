"""The URLs of tunnels, which the gateway parses.

by path   <the API's URL>/t/<sandbox>/<port>/…
by host   <scheme>://<port>-<sandbox>.<tunnel domain>[:<port of the API's URL>]/…
"""

from __future__ import annotations

from urllib.parse import quote, urlsplit

TOKEN_PARAMETER = "shoal_token"
"""The query parameter for a connect token, for clients that cannot set a header."""

CONNECT_KEY = "http"
"""The container key in connect tokens of `http` tunnels: these outlive a container, and no relay takes them."""


def tunnel_url(api_url: str, domain: str | None, sandbox_id: str, port: int) -> str:
    """The URL of a tunnel, ending in `/`. `domain`: the setting `api.tunnel_domain`; scheme and port are the API's."""
    if domain is None:
        return f"{api_url.rstrip('/')}{path_prefix(sandbox_id, port)}/"
    parts = urlsplit(api_url)
    own_port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{port}-{sandbox_id}.{domain}{own_port}/"


def url_with_token(url: str, token: str) -> str:
    """A link that opens a private tunnel in a browser."""
    return f"{url}{'&' if '?' in url else '?'}{TOKEN_PARAMETER}={quote(token, safe='')}"


def path_prefix(sandbox_id: str, port: int) -> str:
    """The prefix of a tunnel's paths."""
    return f"/t/{sandbox_id}/{port}"
