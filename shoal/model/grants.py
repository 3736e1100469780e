"""Relay tokens: who may talk to which sandbox's agent, and for how long.

`base64url(payload).base64url(HMAC-SHA256(secret, payload))`, without padding. The relay checks them offline.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from shoal.model.errors import Unauthenticated

SCOPE_EXEC = "exec"
SCOPE_FILES = "files"
SCOPE_ADMIN = "admin"
SCOPE_TUNNEL = "tunnel"
SCOPE_PASS = "pass"
CLIENT_SCOPES = (SCOPE_EXEC, SCOPE_FILES, SCOPE_TUNNEL)

TTL_S = 600
"""Seconds for which a token admits new connections. An admitted connection stays."""


TLS_SCHEME = "tls://"

MAX_TOKEN = 2048
"""The longest valid token, in bytes."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The content of a token. `expires`: unix seconds. `port`: the only port it is valid for; None: any."""

    sandbox_id: str
    key: str
    scopes: tuple[str, ...]
    expires: float
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The address of a sandbox's agent, and a token for it. `expires`: unix seconds."""

    sandbox_id: str
    address: str  # of the node's relay, as `endpoint` writes it
    token: str
    expires: float
    environment: str = "main"


def endpoint(address: str, fingerprint: str) -> str:
    """A relay for its clients: `host:port`, or `tls://FINGERPRINT@host:port` where it speaks TLS.

    `fingerprint`: the SHA-256 of its certificate in hexadecimal, or empty. No other certificate is accepted.
    """
    return f"{TLS_SCHEME}{fingerprint}@{address}" if fingerprint else address


def sign(
    secret: bytes, sandbox_id: str, key: str, scopes: tuple[str, ...], expires: float, *, port: int | None = None
) -> str:
    """A token for the container `key` of sandbox `sandbox_id`. `secret`: 32 bytes, the cluster's.

    `port`: valid only for connections to this port in the sandbox (scope `tunnel`: by the relay itself; scope `pass`:
    through the port's tunnel, while it is exposed). None: valid for all that the scopes allow.
    """
    claims: dict[str, object] = {"sandbox": sandbox_id, "key": key, "scopes": list(scopes), "exp": int(expires)}
    if port is not None:
        if not 0 < port < 65536:
            raise ValueError(f"port must be 1 to 65535, not {port}")
        claims["port"] = port
    payload = json.dumps(claims, separators=(",", ":")).encode()
    signature = hmac.new(secret, payload, hashlib.sha256).digest()
    return f"{_b64(payload)}.{_b64(signature)}"


def verify(secret: bytes, token: str, now: float) -> Claims:
    """The content of `token`; `Unauthenticated` if its signature is wrong or it has expired at `now` (unix seconds)."""
    payload = _signed_payload(secret, token)
    if payload is None:
        raise Unauthenticated("the connect token is not one of this cluster's: ask for a new one")
    try:
        data: dict[str, Any] = json.loads(payload)
        scopes = tuple(str(scope) for scope in data["scopes"])
        port = data.get("port")
        claims = Claims(str(data["sandbox"]), str(data["key"]), scopes, float(data["exp"]), port)
    except (ValueError, KeyError, TypeError):  # signed with this secret, but for something else
        raise Unauthenticated("the connect token makes no sense: ask for a new one") from None
    if now >= claims.expires:
        raise Unauthenticated("the connect token has expired: ask for a new one")
    return claims


def agent_secret(secret: bytes, key: str) -> bytes:
    """What the agent of the container `key` shows to the relay, 32 bytes. `secret`: the cluster's, from which it
    follows, so that a relay which was restarted knows it."""
    return hmac.new(secret, f"agent {key}".encode(), hashlib.sha256).digest()


def _signed_payload(secret: bytes, token: str) -> bytes | None:
    """The payload, after checking its signature in constant time."""
    if len(token) > MAX_TOKEN or not token.isascii():
        return None
    first, _, second = token.partition(".")
    try:
        payload, signature = (base64.b64decode(_padded(part), b"-_", validate=True) for part in (first, second))
    except (binascii.Error, ValueError):
        return None
    return payload if hmac.compare_digest(hmac.new(secret, payload, hashlib.sha256).digest(), signature) else None


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
