"""Sessions of browsers: a signed cookie that names a token and when it ends. No replica keeps anything of them.

The token is looked up with each request, so a session ends at the latest with its token. The cookie is `HttpOnly` and
`SameSite=Strict`. What a browser sends with it counts only if it comes from the dashboard's own pages: requests say so
by `Sec-Fetch-Site`, and those that change something, and WebSockets, by an `Origin` that is this API's own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

from shoal.model import verbs
from shoal.model.access import TokenInfo
from shoal.model.errors import PermissionDenied, Unauthenticated
from shoal.model.settings import ApiSettings
from shoal.transport.contract import Transport

COOKIE = "shoal_session"
"""The gateway keeps cookies whose names begin so from sandboxes (`gateway/credentials.go`)."""

_TEXT = re.compile(r"(tk-[0-9a-z]{16})\.([0-9]{1,12})\.([\w-]{43})", re.ASCII)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def sign(secret: bytes, token_id: str, expires: int) -> str:
    """The cookie's value."""
    return f"{token_id}.{expires}.{_signature(secret, token_id, expires)}"


def read(secret: bytes, text: str, now: float) -> str | None:
    """The id of the token of a session that lasts; None for anything else."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    token_id, expires, signature = match[1], int(match[2]), match[3]
    right = hmac.compare_digest(signature, _signature(secret, token_id, expires))
    return token_id if right and now < expires else None


def _signature(secret: bytes, token_id: str, expires: int) -> str:
    digest = hmac.new(secret, f"{token_id}.{expires}".encode("ascii"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


class Sessions:
    """Makes sessions, and knows them again. Belongs to one event loop."""

    def __init__(self, transport: Transport, api: ApiSettings) -> None:
        self._transport = transport
        self._api = api
        self._secret: bytes | None = None

    @property
    def possible(self) -> bool:
        """Not where pages of sandboxes share the origin, and could read the dashboard's."""
        return self._api.dashboard and self._api.confine_tunnels

    async def open(self, connection: HTTPConnection, response: Response, token: TokenInfo) -> None:
        """Sets the cookie. The session ends with the token, if that is earlier."""
        now = time.time()
        expires = now + self._api.session
        if token.expires_at is not None:
            expires = min(expires, token.expires_at)
        self._set(connection, response, sign(await self._key(), token.id, int(expires)), int(expires - now))

    def close(self, connection: HTTPConnection, response: Response) -> None:
        """Removes the cookie."""
        self._set(connection, response, "", 0)

    async def token_id(self, connection: HTTPConnection) -> str | None:
        """The token of the request's session, None where it has none. `Unauthenticated` for one that has ended,
        `PermissionDenied` for a request that is not the dashboard's own."""
        text = connection.cookies.get(_name(connection)) if self.possible else None
        if text is None:
            return None
        token_id = read(await self._key(), text, time.time())
        if token_id is None:
            raise Unauthenticated("the session has ended; sign in again")
        self.check_same_origin(connection)
        return token_id

    def check_same_origin(self, connection: HTTPConnection) -> None:
        """Raises `PermissionDenied` for a request that another site's page makes a browser send."""
        headers, scope = connection.headers, connection.scope
        own = headers.get("sec-fetch-site") in (None, "same-origin")
        if own and (scope["type"] == "websocket" or scope["method"] not in _SAFE):
            known = {headers.get("host"), None if self._api.url is None else urlsplit(self._api.url).netloc}
            own = headers.get("origin", "").partition("://")[2] in known - {None, ""}
        if not own:
            raise PermissionDenied("the request does not come from the dashboard's own page, and it has no token")

    async def _key(self) -> bytes:
        if self._secret is None:
            self._secret = await self._transport.ask(verbs.session_secret)
        return self._secret

    def _set(self, connection: HTTPConnection, response: Response, value: str, age: int) -> None:
        response.set_cookie(
            _name(connection),
            value,
            max_age=age,
            path="/",
            secure=_secure(connection),
            httponly=True,
            samesite="strict",
        )


def _secure(connection: HTTPConnection) -> bool:
    return str(connection.scope["scheme"]) in ("https", "wss")


def _name(connection: HTTPConnection) -> str:
    """With the port, which browsers do not tell apart by themselves: two clusters may be on one machine."""
    port = connection.headers.get("host", "").rpartition(":")[2]
    name = f"{COOKIE}_{port}" if port.isascii() and port.isdecimal() else COOKIE
    return f"__Host-{name}" if _secure(connection) else name
