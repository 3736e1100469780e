"""Access: environments and their quotas, API tokens, callers, the audit log.

A token has the form `shoal_<id>_<secret><checksum>`. `id` is public, for listings and the audit log; `secret` is 160
random bits and shown once. The store keeps its SHA-256: a random secret this long needs no slow hash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import string
import zlib
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from shoal.model.tunnels import url_with_token

MAIN_ENVIRONMENT = "main"
"""The environment that always exists, and is the default."""

ANY_ENVIRONMENT = "*"
"""The environment of tokens that are valid in all environments; with `admin`, such a token manages all of them."""

_TOKEN = re.compile(r"(shoal_(tk-[0-9a-z]{16})_([0-9a-z]{32}))([0-9A-Za-z]{6})?")
"""The last part is a checksum; tokens of Shoal's first versions have none."""

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


class Scope(StrEnum):
    """What a token allows. Each scope includes the ones before it."""

    READ = "read"  # look: list, get, logs, events, metrics
    RUN = "run"  # also create, exec, files, tunnels, terminate
    ADMIN = "admin"  # also tokens, the quota and the audit log of its environment; of `*`: environments

    def covers(self, wanted: Scope) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(wanted)


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that an environment's living sandboxes may use together; None: unlimited.

    CPU in cores and memory in MiB count the sandboxes' limits, not their requests. `creates_per_minute` counts accepted
    creates in any 60 s. `volume_bytes`, `volume_files`: what the limits of its volumes add up to, each of which must
    have one then.
    """

    sandboxes: int | None = None
    cpu: float | None = None
    memory: int | None = None
    creates_per_minute: int | None = None
    volume_bytes: int | None = None
    volume_files: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Environment:
    """A namespace for names, quotas and tokens. `created_at` in unix seconds; `usage`: the part of the quota in use."""

    name: str
    quota: Quota
    created_at: float
    usage: Quota = field(default_factory=Quota)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """An API token without its secret.

    Times in unix seconds; `expires_at` None: never. `last_used_at` to the minute.
    """

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
    """A token as stored. `digest`: the SHA-256 of its secret, in hex."""

    info: TokenInfo
    digest: str


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is made. `token`: a token's id, or `cluster` for callers inside the cluster.

    `environment`: the only one that the call may see, or `*` for all. `address`: the client's, if known.
    """

    token: str = "cluster"
    environment: str = ANY_ENVIRONMENT
    scope: Scope = Scope.ADMIN
    request_id: str | None = None
    address: str | None = None


INSIDE = Caller()
"""The default caller: inside the cluster, whoever can reach Ray may do everything."""

caller: ContextVar[Caller] = ContextVar("caller", default=INSIDE)
"""The caller in this context. The API sets it for each request, and transports pass it on."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action, done or refused. `outcome`: `ok` or an error's code. `target`: an id or a name."""

    at: float
    action: str  # such as `sandbox.create`, `token.revoke`, `exec`, `files.write`
    outcome: str
    token: str
    environment: str
    target: str | None = None
    request_id: str | None = None
    address: str | None = None
    id: int = 0  # set by the store; rising

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """One change of a sandbox. `id` rises over the whole cluster.

    `kind`: `created`, the new state, `tags`, `moved` (off its machine, while it is stopped), `exposed` or `unexposed`.
    `data`, as JSON: those of `reason`, `returncode`, `message`, `node_id` and `token` (who did it) that apply.
    """

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
    """A way from outside to a port of a sandbox. `protocol`: `http` (with WebSockets) or `tcp`.

    `url` is set for http, `address` (host:port) for tcp. A private tunnel needs a connect token: `token`, valid until
    `expires_at` (unix seconds). Both are None for a public tunnel, and in a list of tunnels.
    """

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
        """The URL for a browser, with the token if there is one; None for tcp."""
        return self.url if self.url is None or self.token is None else url_with_token(self.url, self.token)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SignInCode:
    """What signs a browser in to the dashboard, once, until `expires_at` (unix seconds)."""

    code: str
    expires_at: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mint() -> tuple[str, str, str]:
    """A new token: (its id, its text to show once, its digest to store)."""
    token_id = f"tk-{_random(10)}"
    secret = _random(20)
    text = f"shoal_{token_id}_{secret}"
    return token_id, text + _checksum(text), digest_of(secret)


def split(token: str) -> tuple[str, str] | None:
    """(id, secret) of a text that has the form of a token and, if it has a checksum, the right one; else None."""
    match = _TOKEN.fullmatch(token)
    if match is None or match[4] not in (None, _checksum(match[1])):
        return None
    return match[2], match[3]


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def matches(stored: StoredToken, secret: str) -> bool:
    """Whether `secret` is the token's, compared in constant time."""
    return hmac.compare_digest(stored.digest, digest_of(secret))


def _checksum(text: str) -> str:
    """The CRC-32 in six digits of base 62. Whoever mistypes or makes up a token is told so without a lookup, and
    scanners for lost secrets recognize one."""
    number, digits = zlib.crc32(text.encode("ascii")), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


def _random(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode("ascii").lower()
