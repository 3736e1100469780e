"""Signing browsers in to the dashboard: codes that do it once, and the secret that sessions are signed with.

A code lives here only, for ten minutes. A controller that starts anew knows none: no code works twice.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

from shoal.model.access import Caller, SignInCode
from shoal.model.errors import FailedPrecondition, Unauthenticated

LASTS_S = 600.0
_MOST = 1000


class SignIns:
    """`secret`: the cluster's; `clock`: unix seconds."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = hmac.new(secret, b"sessions of the dashboard", hashlib.sha256).digest()
        self._clock = clock
        self._codes: dict[str, tuple[str, float]] = {}  # by digest: the token's id, and when it expires; oldest first

    def make(self, caller: Caller) -> SignInCode:
        """A code for the caller's token. Beyond a thousand, the oldest is forgotten."""
        if not caller.token.startswith("tk-"):
            raise FailedPrecondition(
                "a browser signs in with a token, and this call has none: go through the API (`--url`)",
                state="no_token",
            )
        now = self._clock()
        for digest, (_, expires) in list(self._codes.items()):
            if expires > now and len(self._codes) < _MOST:
                break
            del self._codes[digest]
        code = secrets.token_urlsafe(24)
        self._codes[_digest(code)] = caller.token, now + LASTS_S
        return SignInCode(code, now + LASTS_S)

    def redeem(self, code: str) -> str:
        """The id of the token that the code is for; the code is used up."""
        token, expires = self._codes.pop(_digest(code), ("", 0.0))
        if expires <= self._clock():
            raise Unauthenticated(
                "this link was used before, or is older than ten minutes; run `shoal dashboard` again"
            )
        return token

    def tell_secret(self) -> bytes:
        """What sessions are signed with."""
        return self._secret


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode("utf-8", "surrogateescape")).hexdigest()
