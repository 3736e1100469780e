"""Who may do what: environments and their quotas, API tokens, callers, what they did.

A token reads `shoal_<id>_<secret>`: `id` is public and names it in listings and in the audit log, `secret` is 160 random bits that are shown
once. The store keeps the SHA-256 of the secret: of a random text that long nobody finds another one with the same, so no slow hash is needed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from shoal.model.tunnels import url_with_token

MAIN_ENVIRONMENT = "main"
"""The environment that always is, and is meant where none is named."""

ANY_ENVIRONMENT = "*"
"""A token of this environment is the cluster's: it may do its scope in every environment, and with `admin` manage all of them."""

_TOKEN = re.compile(r"shoal_(tk-[0-9a-z]{16})_([0-9a-z]{32})")


class Scope(StrEnum):
    """What a token lets its holder do. Each includes those before it."""

    READ = "read"  # look: list, get, logs, events, metrics
    RUN = "run"  # also create, exec, files, tunnels, terminate
    ADMIN = "admin"  # also tokens, the quota and the audit log of its environment; of `*`: environments

    def covers(self, wanted: Scope) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(wanted)


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that an environment's living sandboxes may have together; None: no bound. CPU in cores and memory in MiB count the
    limits of sandboxes, not their requests; `creates_per_minute` counts accepted creates in any 60 s."""

    sandboxes: int | None = None
    cpu: float | None = None
    memory: int | None = None
    creates_per_minute: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Environment:
    """A namespace: names, quotas and tokens live inside one. `created_at` in unix seconds; `usage` as `Quota`, what is used now."""

    name: str
    quota: Quota
    created_at: float
    usage: Quota = field(default_factory=Quota)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """An API token without its secret. Times in unix seconds; `expires_at` None: never. `last_used_at` to the minute."""

    id: str
    name: str
    environment: str
    scope: Scope
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    created_by: str | None = None

    def valid(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "scope": self.scope.value}


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as the cluster keeps it. `digest`: SHA-256 of its secret, in hex."""

    info: TokenInfo
    digest: str


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is made. `token` is a token's id, or `cluster` for whoever is inside the cluster or on its own machine.

    `environment`: the only one that the call may see, `*` for all. `address` is the client's, as far as known."""

    token: str = "cluster"
    environment: str = ANY_ENVIRONMENT
    scope: Scope = Scope.ADMIN
    request_id: str | None = None
    address: str | None = None


INSIDE = Caller()
"""The caller where nothing else is said: in the cluster whoever reaches Ray may do everything."""

caller: ContextVar[Caller] = ContextVar("caller", default=INSIDE)
"""The caller of what runs in this context. The API sets it for each request; a transport passes it on."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that somebody did or was refused. `outcome` is `ok` or an error's code; `target` an id or a name."""

    at: float
    action: str  # as `sandbox.create`, `token.revoke`, `exec`, `files.write`
    outcome: str
    token: str
    environment: str
    target: str | None = None
    request_id: str | None = None
    address: str | None = None
    id: int = 0  # the store gives it; rising

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """One change in a sandbox's life. `id` rises over the whole cluster; `kind` is `created` or the state that it went into, `tags`,
    `exposed`, `unexposed`; `data` as JSON: `reason`, `returncode`, `message`, `node_id`, `token` (who), as far as they apply."""

    id: int
    at: float
    environment: str
    sandbox_id: str
    kind: str
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A way in from outside to a port of a sandbox. `protocol`: `http` (WebSockets included) or `tcp`.

    `url` for http, `address` (host:port) for tcp. A private one needs a connect token: `token`, until `expires_at` (unix seconds); both are
    None for a public one and where tunnels are only listed."""

    sandbox_id: str
    port: int
    protocol: str
    public: bool
    url: str | None = None
    address: str | None = None
    token: str | None = None
    expires_at: float | None = None

    @property
    def link(self) -> str | None:
        """The URL as a browser opens it, with the token where there is one; None for tcp."""
        return self.url if self.url is None or self.token is None else url_with_token(self.url, self.token)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mint() -> tuple[str, str, str]:
    """A new token: (id, the whole token to show once, digest to keep)."""
    token_id = f"tk-{_random(10)}"
    secret = _random(20)
    return token_id, f"shoal_{token_id}_{secret}", digest_of(secret)


def split(token: str) -> tuple[str, str] | None:
    """(id, secret) of what looks like a token, else None."""
    match = _TOKEN.fullmatch(token)
    return None if match is None else (match[1], match[2])


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def matches(stored: StoredToken, secret: str) -> bool:
    """Whether `secret` is the token's, in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(stored.digest, digest_of(secret))


def _random(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode("ascii").lower()
