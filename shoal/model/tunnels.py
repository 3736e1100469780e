"""URLs of tunnels: building and parsing them.

by path   <the API's URL>/t/<sandbox>/<port>/…
by host   <scheme>://<port>-<sandbox>.<tunnel domain>[:<port of the API's URL>]/…
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

TOKEN_PARAMETER = "shoal_token"
"""The query parameter for a connect token, for clients that cannot set a header."""

TOKEN_HEADER = "X-Shoal-Connect-Token"

_PATH = re.compile(rb"/t/(sb-[0-9a-z]{1,32})/([1-9][0-9]{0,4})(?=/|\Z)")
_LABEL = re.compile(r"([1-9][0-9]{0,4})-(sb-[0-9a-z]{1,32})")


@dataclass(frozen=True, slots=True)
class Target:
    """A port in a sandbox. `prefix`: the path prefix that names it; empty if the host name does."""

    sandbox_id: str
    port: int
    prefix: str = ""


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


def target_of_path(raw_path: bytes) -> Target | None:
    """The target named by a request's raw path; None if it is not a tunnel's."""
    match = _PATH.match(raw_path)
    if match is None or int(match[2]) > 65535:
        return None
    return Target(match[1].decode("ascii"), int(match[2]), match[0].decode("ascii"))


def target_of_host(host: str, domain: str) -> Target | None:
    """The target named by a `Host` header; None if it is not directly below the tunnel domain."""
    name = re.sub(r":[0-9]*\Z", "", host.lower()).removesuffix(".")
    label, dot, rest = name.partition(".")
    match = _LABEL.fullmatch(label)
    if match is None or not dot or rest != domain.lower() or int(match[1]) > 65535:
        return None
    return Target(match[2], int(match[1]))
