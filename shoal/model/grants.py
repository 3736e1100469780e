"""Relay tokens: who may talk to which sandbox's agent, for how long.

`base64url(payload).base64url(HMAC-SHA256(secret, payload))`, without padding. The relay checks them without asking anybody.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

SCOPE_EXEC = "exec"
SCOPE_FILES = "files"
SCOPE_ADMIN = "admin"
SCOPE_TUNNEL = "tunnel"
CLIENT_SCOPES = (SCOPE_EXEC, SCOPE_FILES, SCOPE_TUNNEL)

TTL_S = 600
"""How long a token admits new connections. A connection once admitted stays."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Where a sandbox's agent is reached, and the token that admits. `expires`: unix seconds."""

    sandbox_id: str
    address: str  # host:port of the node's relay
    token: str
    expires: float


def sign(
    secret: bytes, sandbox_id: str, key: str, scopes: tuple[str, ...], expires: float, *, port: int | None = None
) -> str:
    """A token for the container `key` of sandbox `sandbox_id`. `secret`: 32 bytes, the cluster's.

    `port`: good for connections to that port in the sandbox (scope `tunnel`) and for nothing else; None: for all that the scopes allow.
    """
    claims: dict[str, object] = {"sandbox": sandbox_id, "key": key, "scopes": list(scopes), "exp": int(expires)}
    if port is not None:
        if not 0 < port < 65536:
            raise ValueError(f"port must be 1 to 65535, not {port}")
        claims["port"] = port
    payload = json.dumps(claims, separators=(",", ":")).encode()
    signature = hmac.new(secret, payload, hashlib.sha256).digest()
    return f"{_b64(payload)}.{_b64(signature)}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
