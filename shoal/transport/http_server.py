"""Where an API is, which certificates are trusted, and which proxy leads there. Read once, before anything is sent."""

from __future__ import annotations

import ssl
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from shoal.model.errors import InvalidRequest, Unauthenticated
from shoal.model.hosts import is_loopback

_NETLOC_MAX = 300


@dataclass(frozen=True, slots=True)
class Server:
    """An API. `url` as `normal_url` gives it; `tls` and `proxy` may be None; `repr` does not show `token`."""

    url: str
    token: str | None
    tls: ssl.SSLContext | None
    proxy: str | None

    def __repr__(self) -> str:
        return f"<Server {self.url}>"


def server(url: str, token: str | None, ca: str | None) -> Server:
    """The API at `url`, trusted by the system's certificates, or by those of the file `ca` alone.

    Raises `InvalidRequest`, `Unauthenticated`.
    """
    base = normal_url(url)
    if token is not None:
        check_token(token)
    if base.startswith("http:"):
        return Server(base, token, None, _proxy(base))
    try:
        tls = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(
            f"ca: {ca} cannot be used ({error.strerror or error}); name a file of certificates in PEM form", field="ca"
        ) from None
    return Server(base, token, tls, _proxy(base))


def normal_url(url: str) -> str:
    """`url` without a slash at its end: scheme, host, port and a path that stands before the API's own.
    `InvalidRequest` for anything else."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"address: {url!r} is no URL ({error})", field="address") from None
    if parts.scheme not in ("http", "https") or not host or len(parts.netloc) > _NETLOC_MAX:
        raise InvalidRequest(
            f"address: {url!r} is no URL of an API; write http://host:port or https://host", field="address"
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(
            "address: a URL with a name or password in it; pass the token as `token=`, or in SHOAL_TOKEN",
            field="address",
        )
    if parts.query or parts.fragment or any(c.isspace() for c in url.strip()):
        raise InvalidRequest(
            f"address: {url!r} has more than host, port and path; leave the rest away", field="address"
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def check_token(token: str) -> None:
    """`Unauthenticated` for a text that cannot be a token, before any of it is sent."""
    if not token or len(token) > 4096 or not all("!" <= c <= "~" for c in token):
        raise Unauthenticated(
            "token: it is empty or holds characters that no token has; copy it again, as a whole and without line ends"
        )


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL; None for the loopback, whatever the environment says."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    name = parts.scheme if proxies.get(parts.scheme) else "all"
    found = proxies.get(name)
    if not found:
        return None
    proxy = found if "://" in found else f"http://{found}"
    if not _is_http_proxy(proxy):  # the text is not shown: it may hold a password
        raise InvalidRequest(
            f"{name.upper()}_PROXY: it is no HTTP proxy's URL, and Shoal goes through no other; name one in "
            f"{parts.scheme.upper()}_PROXY as http://host:port, or set NO_PROXY={host} to go without",
            field="proxy",
        )
    return proxy


def _is_http_proxy(url: str) -> bool:
    # A SOCKS proxy would be spoken to in HTTP, and get the token in clear text.
    try:
        parts = urlsplit(url)
        spaced = any(c.isspace() for c in url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not spaced
    except ValueError:
        return False
