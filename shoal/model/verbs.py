"""The table of verbs: everything that the cluster's controller can be asked, declared once.

A declaration gives a verb's arguments, result and errors. Its decorator says who may ask, and how the verb travels.
The rest follows from here: the controller's dispatch, both transports, the addresses and scopes of the API's routes,
the actions in the audit log, and what is sent again.

Rules for every verb
    - Errors are of `shoal.model.errors`. What a caller may not see does not exist for it: `SandboxNotFound`,
      `EnvironmentNotFound`.
    - After `Unavailable` a transport asks again, as far as the verb's `retry` allows.

Over HTTP, an argument that the path names goes into the path. The others are the query of a GET or DELETE, or the
members of the JSON body of a POST or PUT; a lone `Quota` is the body itself. A verb without an address is asked only
inside the cluster, or has a route of its own kind.
"""
# mypy: disable-error-code="empty-body"
# Declarations have no bodies: the controller has the handlers.

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Any, Generic, ParamSpec, TypeVar

from shoal.model.access import (
    AuditEntry,
    Environment,
    Quota,
    SandboxEvent,
    Scope,
    SignInCode,
    StoredToken,
    TokenInfo,
    Tunnel,
)
from shoal.model.builds import BaseImage, BuildInfo, BuildLog, BuildOptions, PushedImage
from shoal.model.capacity import Capacity, Demand
from shoal.model.errors import ShoalError
from shoal.model.grants import Grant
from shoal.model.images import ImageListing, ImagePage, ImageRecord
from shoal.model.info import Listing, LogChunk, NodeDrain, NodeInfo, Page, SandboxInfo
from shoal.model.metrics import Series
from shoal.model.overview import Overview
from shoal.model.pools import PoolInfo
from shoal.model.profile import CreateProfile
from shoal.model.recipe import Recipe
from shoal.model.secrets import SecretInfo, SecretUse
from shoal.model.spec import SandboxSpec
from shoal.model.usage import SandboxLoad, SandboxUsage, UsageRow
from shoal.model.volumes import VolumeInfo

LONGEST_WAIT_S = 30.0
"""The longest that one call of a verb waits for something to happen."""

SNAPSHOT_S = 600.0
"""The longest that taking an image of a sandbox's files may take."""

BASE_S = PUSH_S = 900.0
"""The longest that pulling the base of a build, or sending an image to a registry, may take."""

VOLUME_S = 120.0
"""The longest that a call about one volume may take."""

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

Made = tuple[SandboxInfo, Grant | None]
"""A sandbox that was created, and access to its agent where it runs."""


class Retry(Enum):
    """When a transport sends a verb again."""

    ALWAYS = "always"
    """When no answer came, and when the answer is `Unavailable`."""
    UNANSWERED = "unanswered"
    """Only when no answer came: the controller refuses it only after having waited itself."""
    NEVER = "never"
    """Not once it may have been received: sent twice, it does something else."""


class Verb(Generic[P, R_co]):
    """One verb.

    `scope`: what a caller's token must cover, None where only the cluster's own parts ask. `everywhere`: the token must
    be one of all environments, too. `method`, `path`: its address in the API. `many`: the name under which a JSON
    answer holds its list. `audit`: its action in the audit log. `takes`: seconds that it may take beside those of an
    ordinary call, or the argument that says so.
    """

    def __init__(
        self,
        declaration: Callable[P, R_co],
        scope: Scope | None,
        http: str | None,
        many: str | None,
        everywhere: bool,
        audit: str | None,
        retry: Retry,
        takes: float | str,
    ) -> None:
        self.declaration = declaration
        self.name = declaration.__name__
        self.scope = scope
        self.method, _, self.path = (http or "").partition(" ")
        self.many = many
        self.everywhere = everywhere
        self.audit = audit
        self.retry = retry
        self.takes = takes

    @cached_property
    def signature(self) -> inspect.Signature:
        """Its arguments by name."""
        return inspect.signature(self.declaration)

    @cached_property
    def _count(self) -> int:
        return len(self.signature.parameters)

    def named(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, defaults included."""
        bound = self.signature.bind(*args, **options)
        bound.apply_defaults()
        return bound.arguments

    def in_order(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in their order, defaults included."""
        if not options and len(args) == self._count:
            return args
        return tuple(self.named(args, options).values())

    def __repr__(self) -> str:
        return f"<Verb {self.name}>"


def verb(
    scope: Scope | None,
    http: str | None = None,
    *,
    many: str | None = None,
    everywhere: bool = False,
    audit: str | None = None,
    retry: Retry = Retry.ALWAYS,
    takes: float | str = 0.0,
) -> Callable[[Callable[P, R_co]], Verb[P, R_co]]:
    """Declares a verb; `http` as in `"GET /v1/nodes"`, the rest as in `Verb`."""
    return lambda declaration: Verb(declaration, scope, http, many, everywhere, audit, retry, takes)


# Sandboxes


@verb(Scope.RUN, "POST /v1/sandboxes", audit="sandbox.create", retry=Retry.UNANSWERED)
def create(spec: SandboxSpec, deadline: float, wait: bool) -> Made:
    """Creates a sandbox within `deadline` seconds and returns it running; not `wait`: as soon as it is on record. Its
    idempotency key makes it safe to send twice.

    Raises `InvalidRequest` (with `field`), `ImageNotFound`, `AlreadyExists` (name), `CommandNotFound`, `QuotaExceeded`,
    `DeadlineExceeded`; nothing is left then.
    """


@verb(Scope.RUN, "POST /v1/sandboxes/batch", audit="sandbox.create", retry=Retry.UNANSWERED)
def create_many(specs: Sequence[SandboxSpec], deadline: float, wait: bool) -> list[Made | ShoalError]:
    """Up to 1,000 creates; for each, in the same order, what `create` would have returned or raised."""


@verb(Scope.RUN)
def give_up(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ends the sandboxes of creates whose caller has gone. `keys`: (environment, idempotency key).
    Returns the keys that it knows."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}")
def get(sandbox_id: str) -> SandboxInfo:
    """Its newest state, its end included; `SandboxNotFound` only if it never existed."""


@verb(Scope.READ, "GET /v1/sandboxes/by-name/{name}")
def find(name: str, environment: str) -> SandboxInfo:
    """The living sandbox of that name, else the last that had it; `SandboxNotFound`."""


@verb(Scope.READ, "GET /v1/sandboxes")
def list_sandboxes(listing: Listing) -> Page:
    """Sandboxes, newest first, as far as one look reaches; `EnvironmentNotFound`."""


@verb(Scope.RUN, "PUT /v1/sandboxes/{sandbox_id}/tags", audit="sandbox.tags")
def set_tags(sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
    """Replaces its tags; `SandboxEnded`."""


@verb(Scope.RUN, "POST /v1/sandboxes/renew", many="renewed")
def renew(sandbox_ids: Sequence[str]) -> list[str]:
    """Renews the owner leases of up to 1,000 sandboxes, each for its `owner_lease` from now on. Returns those renewed:
    not those that have ended, have no lease, or are not the caller's to see."""


@verb(Scope.RUN, "DELETE /v1/sandboxes/{sandbox_id}", audit="sandbox.terminate", takes=60.0)
def terminate(sandbox_id: str) -> SandboxInfo:
    """Ends it and returns once its processes are gone. For one that has ended: its end."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/stop", audit="sandbox.stop", takes=90.0)
def stop(sandbox_id: str) -> SandboxInfo:
    """Stops a persistent sandbox and returns once nothing of it runs; its disk, name, tags and tunnels stay. It does
    not start again by itself then. `SandboxEnded`, `FailedPrecondition` where it is not persistent."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/start", audit="sandbox.start", takes="deadline")
def start(sandbox_id: str, deadline: float) -> SandboxInfo:
    """Starts a persistent sandbox that is stopped, within `deadline` seconds; for one that runs: its state.

    Raises `SandboxEnded`, `FailedPrecondition` where it is not persistent or its machine is not there, `QuotaExceeded`,
    `DeadlineExceeded`; it is stopped then.
    """


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/wait", takes="timeout")
def wait(sandbox_id: str, timeout: float) -> SandboxInfo:
    """Its state once it has ended, or after `timeout` seconds (30 at most), whichever is first."""


@verb(Scope.READ, retry=Retry.UNANSWERED)
def grant(sandbox_id: str) -> Grant:
    """Where its agent is reached, and a token; `SandboxEnded`, `FailedPrecondition` before it runs."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/logs")
def logs(sandbox_id: str, fd: int, offset: int) -> LogChunk:
    """Output of its own command as kept after its end or stop (`fd` 1 or 2); `FailedPrecondition` while it runs: read
    from the agent."""


# Tunnels


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/tunnels", audit="tunnel.expose")
def expose(sandbox_id: str, port: int, protocol: str, public: bool) -> Tunnel:
    """Opens a tunnel to a port; `protocol` is `http` or `tcp`. Again with the same arguments: the same tunnel, with a
    fresh token where it is private; with others: it is changed. `SandboxEnded`, `FailedPrecondition` before it runs,
    `QuotaExceeded`."""


@verb(Scope.RUN, "DELETE /v1/sandboxes/{sandbox_id}/tunnels/{port}", audit="tunnel.unexpose")
def unexpose(sandbox_id: str, port: int) -> None:
    """Closes a tunnel. If the port has none, nothing happens."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/tunnels", many="tunnels")
def tunnels(sandbox_id: str) -> list[Tunnel]:
    """Its tunnels by port, without tokens; for one that has ended: none."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/tunnels/{port}/token", audit="tunnel.token")
def tunnel_token(sandbox_id: str, port: int, expires_in: float) -> Tunnel:
    """The tunnel with a connect token that lasts `expires_in` seconds (7 days at most); `TunnelNotFound`."""


# Environments


@verb(Scope.ADMIN, "POST /v1/environments", everywhere=True, audit="environment.create", retry=Retry.NEVER)
def create_environment(name: str, quota: Quota) -> Environment:
    """A new one; `InvalidRequest`, `AlreadyExists`, also while the history of a deleted one of that name is kept."""


@verb(Scope.READ, "GET /v1/environments", many="environments")
def environments() -> list[Environment]:
    """Those that the caller may see, by name, with their use."""


@verb(Scope.READ, "GET /v1/environments/{name}")
def environment(name: str) -> Environment:
    """One, with its use; `EnvironmentNotFound`."""


@verb(Scope.ADMIN, "PUT /v1/environments/{name}/quota", everywhere=True, audit="environment.quota")
def set_quota(name: str, quota: Quota) -> Environment:
    """Replaces its quota. What lives beyond it lives on; new creates wait for room under it."""


@verb(Scope.ADMIN, "DELETE /v1/environments/{name}", everywhere=True, audit="environment.delete", retry=Retry.NEVER)
def delete_environment(name: str) -> None:
    """Deletes it and revokes its tokens; `FailedPrecondition` while sandboxes live in it, `InvalidRequest` for
    `main`. Its name is free again once its history has expired."""


# Tokens


@verb(Scope.ADMIN, "POST /v1/tokens", audit="token.create", retry=Retry.NEVER)
def create_token(name: str, environment: str, scope: Scope, expires_in: float | None) -> tuple[TokenInfo, str]:
    """A new token and its text, which is not stored. `expires_in` in seconds. `PermissionDenied` for more than the
    caller may."""


@verb(Scope.ADMIN, "GET /v1/tokens", many="tokens")
def tokens() -> list[TokenInfo]:
    """Those that the caller may see, newest first, revoked and expired ones included."""


@verb(Scope.ADMIN, "DELETE /v1/tokens/{token_id}", audit="token.revoke")
def revoke_token(token_id: str) -> TokenInfo:
    """From now on the token is refused, by every replica within `api.token_cache` seconds. May be called again;
    `TokenNotFound`."""


@verb(Scope.READ, "POST /v1/session/codes", audit="session.code")
def sign_in_code() -> SignInCode:
    """What signs a browser in with the caller's token, once, within ten minutes; `FailedPrecondition` for callers
    without a token."""


# Pools


@verb(Scope.RUN, "POST /v1/pools", audit="pool.create")
def create_pool(name: str, spec: SandboxSpec, min_ready: int, max_ready: int, replace: bool) -> PoolInfo:
    """A new pool of the spec's environment, which keeps sandboxes of `spec` ready: at least `min_ready` and, as more
    are taken, up to `max_ready`. A create that asks for the same takes one by itself. Again with the same arguments:
    the same pool. `replace`: in place of another of that name, of which all that is ready ends.

    Raises `InvalidRequest` (with `field`), `AlreadyExists` (name; or `spec`, for another pool of the environment that
    keeps the same), `QuotaExceeded`, `EnvironmentNotFound`. What is ready takes no room from the environment's
    sandboxes: beyond the quota none is made, and as sandboxes use it up, what is ready ends."""


@verb(Scope.READ, "GET /v1/pools", many="pools")
def pools(environment: str | None) -> list[PoolInfo]:
    """The pools of an environment, or (None) all that the caller may see, by environment and name."""


@verb(Scope.READ, "GET /v1/pools/{name}")
def pool(name: str, environment: str) -> PoolInfo:
    """One, with what there is of it now; `PoolNotFound`."""


@verb(Scope.RUN, "PUT /v1/pools/{name}/size", audit="pool.resize")
def resize_pool(name: str, environment: str, min_ready: int, max_ready: int) -> PoolInfo:
    """Changes how many are kept ready; those beyond `max_ready` end. `InvalidRequest`, `QuotaExceeded`,
    `PoolNotFound`."""


@verb(Scope.RUN, "DELETE /v1/pools/{name}", audit="pool.delete", retry=Retry.NEVER)
def delete_pool(name: str, environment: str) -> None:
    """Deletes it. What is ready of it ends; sandboxes that were taken from it live on. `PoolNotFound`."""


# Secrets


@verb(Scope.ADMIN, "POST /v1/secrets", audit="secret.create", retry=Retry.UNANSWERED)
def create_secret(name: str, values: Mapping[str, str], environment: str, replace: bool) -> SecretInfo:
    """Stores values by a name in an environment, encrypted; `replace`: in place of those of that name. No verb tells
    them again. `InvalidRequest`, `AlreadyExists`, `QuotaExceeded`, `FailedPrecondition` (state `no_key`)."""


@verb(Scope.READ, "GET /v1/secrets", many="secrets")
def secrets(environment: str | None) -> list[SecretInfo]:
    """The secrets of an environment, or (None) all that the caller may see, by environment and name."""


@verb(Scope.READ, "GET /v1/secrets/{name}")
def secret(name: str, environment: str) -> SecretInfo:
    """One: its keys, not its values; `SecretNotFound`."""


@verb(Scope.ADMIN, "DELETE /v1/secrets/{name}", audit="secret.delete", retry=Retry.NEVER)
def delete_secret(name: str, environment: str) -> None:
    """Deletes one. Sandboxes that run keep its values; what is started after it needs another. `SecretNotFound`."""


@verb(Scope.ADMIN, "POST /v1/secrets/rotate", everywhere=True, many="secrets", audit="secret.rotate")
def rotate_secrets() -> list[SecretInfo]:
    """Encrypts all secrets anew, with a new key; those of living sandboxes, too. The stored ones.
    `FailedPrecondition` (state `no_key`)."""


# Volumes. `name`: a volume's name or id; `VolumeNotFound`


@verb(Scope.RUN, "POST /v1/volumes", audit="volume.create", retry=Retry.UNANSWERED, takes=VOLUME_S)
def create_volume(
    name: str,
    environment: str,
    size: int | None = None,
    files: int | None = None,
    ephemeral: bool = False,
    exist_ok: bool = False,
) -> VolumeInfo:
    """A new volume, which holds at most `size` bytes and `files` files (None: no limit). `ephemeral`: it is deleted
    once no sandbox has mounted it for five minutes. `exist_ok`: the one of that name, if there is one.

    Raises `InvalidRequest`, `AlreadyExists`, `QuotaExceeded`, `FailedPrecondition` where there can be none, and
    `Unavailable`; nothing is left then."""


@verb(Scope.READ, "GET /v1/volumes", many="volumes")
def volumes(environment: str | None, deleted: bool = False) -> list[VolumeInfo]:
    """The volumes of an environment, or (None) all that the caller may see; `deleted`: those that can be restored."""


@verb(Scope.READ, "GET /v1/volumes/{name}", takes=VOLUME_S)
def volume(name: str, environment: str, use: bool = False) -> VolumeInfo:
    """One; `use`: with what it holds, which takes a fifth of a second."""


@verb(Scope.RUN, "PUT /v1/volumes/{name}/limits", audit="volume.limit", takes=VOLUME_S)
def limit_volume(name: str, environment: str, size: int | None, files: int | None) -> VolumeInfo:
    """Changes what it may hold. What it holds beyond that stays."""


@verb(Scope.RUN, "DELETE /v1/volumes/{name}", audit="volume.delete", retry=Retry.NEVER)
def delete_volume(name: str, environment: str, now: bool = False) -> VolumeInfo:
    """Nobody finds it any more, and its name is free. Sandboxes that have it mounted keep it. Its content is removed
    after `volumes.grace` seconds, or (`now`) at once, but not while it is mounted."""


@verb(Scope.RUN, "POST /v1/volumes/{name}/restore", audit="volume.restore")
def restore_volume(name: str, environment: str) -> VolumeInfo:
    """Takes the deletion of a volume back, by its id, or of the last that had the name; `AlreadyExists` if another
    has it now."""


@verb(Scope.RUN, "POST /v1/volumes/{name}/commit", takes=VOLUME_S)
def commit_volume(name: str, environment: str) -> VolumeInfo:
    """Returns once all that was written and closed in it is durable, and another reader has seen it; `Unavailable`
    where that could not be shown."""


@verb(Scope.RUN, "POST /v1/volumes/{name}/open", takes=VOLUME_S)
def open_volume(name: str, environment: str) -> SandboxInfo:
    """A sandbox of the cluster's own through which the volume's files are read and written: they are at `/volume`. It
    can be used for nothing else, and ends when nobody has used it for a minute."""


# Images


@verb(
    Scope.RUN,
    "POST /v1/sandboxes/{sandbox_id}/snapshot",
    audit="image.snapshot",
    retry=Retry.UNANSWERED,
    takes=SNAPSHOT_S,
)
def snapshot_filesystem(
    sandbox_id: str, name: str | None = None, ttl: float | None = None, key: str | None = None
) -> ImageRecord:
    """An image of a sandbox's files, as they are at one moment in which its processes are frozen; at once usable.
    `name`: `name:tag`, which moves to it from another image; `ttl`: seconds after which it goes, None: only once it has
    no name and is not used for long; `key`: the same key gives the same image.

    Raises `InvalidRequest`, `SandboxEnded`, `FailedPrecondition` before it runs, `QuotaExceeded`; nothing is left then.
    """


@verb(
    Scope.RUN,
    "POST /v1/sandboxes/{sandbox_id}/checkpoint",
    audit="image.checkpoint",
    retry=Retry.UNANSWERED,
    takes=SNAPSHOT_S,
)
def checkpoint(sandbox_id: str, ttl: float | None = None, key: str | None = None) -> ImageRecord:
    """An image of a sandbox's files and memory, of one moment: sandboxes that are created from it, with the runtime
    `runsc`, go on where it was. It goes on itself. The image is on the sandbox's machine only; `ttl`, `key`: as for
    `snapshot_filesystem`.

    Raises `InvalidRequest`, `SandboxEnded`, `QuotaExceeded`, `FailedPrecondition` before it runs, and (state
    `no_memory`) for another runtime.
    """


@verb(
    Scope.RUN,
    "POST /v1/sandboxes/{sandbox_id}/fork",
    many="sandboxes",
    audit="sandbox.fork",
    retry=Retry.UNANSWERED,
    takes="deadline",
)
def fork(sandbox_id: str, count: int, deadline: float, key: str) -> list[Made]:
    """Up to 1,000 sandboxes of the same spec but for its name, running, each with the files that this one has now: all,
    or none. They have the idempotency keys `<key>:<number>`, from 0; `deadline`: seconds for all of it.

    Raises what `snapshot_filesystem` and `create` do.
    """


@verb(Scope.READ, "GET /v1/images")
def list_images(listing: ImageListing) -> ImagePage:
    """Images, newest first; `EnvironmentNotFound`."""


@verb(Scope.READ, "GET /v1/images/{image}")
def get_image(image: str, environment: str | None = None) -> ImageRecord:
    """One, by its id, or by its name in an environment; `ImageNotFound`."""


@verb(Scope.RUN, "DELETE /v1/images/{image}", audit="image.delete")
def delete_image(image: str, environment: str | None = None, when_unused: bool = False) -> ImageRecord:
    """Deletes one, by its id or name. `FailedPrecondition` (state `in_use`, with `in_use`) while sandboxes or pools
    need it; `when_unused`: nobody can use it from now on, and it goes once they do not need it. `ImageNotFound`."""


@verb(Scope.RUN, "PUT /v1/images/{image}/name", audit="image.name")
def name_image(image: str, environment: str | None, name: str | None) -> ImageRecord:
    """Gives one another name, which moves to it from another image of its environment; None: it has no name any more.
    `InvalidRequest`, `ImageNotFound`."""


@verb(Scope.RUN, "POST /v1/images/collect", many="images", audit="image.collect")
def collect_images(environment: str, unused_for: float, dry_run: bool) -> list[ImageRecord]:
    """Deletes the images of an environment that have no name, that nothing needs, and from which no sandbox was created
    for `unused_for` seconds. Returns them; `dry_run`: and deletes none."""


# Builds of images


@verb(Scope.RUN, "POST /v1/images/{image}/push", audit="image.push", takes=PUSH_S)
def push_image(image: str, environment: str | None, reference: str) -> PushedImage:
    """Sends an image of the cluster, by its id or name, to a registry (`registry/name:tag`), with the credentials that
    its node has for that. `ImageNotFound`, `InvalidRequest`, `FailedPrecondition`, `PermissionDenied` or `Unavailable`
    as the registry says."""


@verb(Scope.RUN, "POST /v1/images/pull", audit="image.pull", retry=Retry.UNANSWERED, takes=BASE_S)
def pull_image(reference: str, environment: str, secret: SecretUse) -> ImageRecord:
    """Pulls an image of a registry with credentials (`REGISTRY_USERNAME`, `REGISTRY_PASSWORD`), for one environment
    only. One that it has pulled before, by that reference: that one. `InvalidRequest`, `SecretNotFound`,
    `ImageNotFound`, `QuotaExceeded`, `Unavailable`."""


@verb(Scope.RUN, "POST /v1/images/builds", audit="image.build", takes=BASE_S)
def build_image(recipe: Recipe, environment: str, options: BuildOptions) -> BuildInfo:
    """Has an image built in an environment, or finds it built. One build for all who ask for the same at the same time.
    Where the state is `files`, send what is missing by `put_build_files` and ask again. Otherwise it goes on, whatever
    becomes of the caller: `build_log` follows it.

    Raises `InvalidRequest` (its field names the step), `ImageNotFound` (the base), `EnvironmentNotFound`.
    """


@verb(Scope.READ, "GET /v1/images/builds/{build_id}")
def get_build(build_id: str) -> BuildInfo:
    """How a build stands; `BuildNotFound` also where the builder was started anew: ask for the build again."""


@verb(Scope.READ, "GET /v1/images/builds/{build_id}/log", takes="wait")
def build_log(build_id: str, offset: int, wait: float) -> BuildLog:
    """The log of a build from an offset on; waits up to `wait` seconds (20 at most) for more of it, or for its end.
    `BuildNotFound`."""


@verb(Scope.RUN)
def put_build_files(digest: str, size: int, offset: int, data: bytes) -> None:
    """A piece of the archive of files with that digest and size. The last piece is refused (`InvalidRequest`) where the
    whole has another digest."""


# Looking back


@verb(Scope.ADMIN, "GET /v1/audit", many="entries")
def audit(before: int | None, limit: int) -> list[AuditEntry]:
    """Who did what, newest first, with an id below `before`; up to 1,000."""


@verb(Scope.READ)
def events(
    after: int | None, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0.0
) -> list[SandboxEvent]:
    """Events with an id above `after`, oldest first, at most 1,000; waits up to `wait_s` (30 at most) for the first.
    `after` None: only those that come from now on. Of one sandbox, of one environment (None: all that the caller may
    see)."""


@verb(Scope.READ)
def last_event() -> int:
    """The id of the newest event."""


@verb(Scope.READ, everywhere=True)
def metrics() -> dict[Series, float]:
    """The cluster's metrics: what replicas reported, sandboxes by state, ends by reason, creates, nodes."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/usage")
def sandbox_usage(sandbox_id: str, since: float | None = None) -> SandboxUsage:
    """What a sandbox uses now and used in the last hour, also for an hour after its end. `since`: only the points after
    that time (unix seconds)."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/profile")
def profile(sandbox_id: str) -> CreateProfile:
    """Where the time of its create went, step by step."""


@verb(Scope.READ, "GET /v1/usage/now", many="sandboxes")
def loads(environment: str | None = None) -> list[SandboxLoad]:
    """What sandboxes that run used when their nodes looked last, of one environment or (None) of all that the caller
    may see. Some seconds old; one that has just started is missing. `EnvironmentNotFound`."""


@verb(Scope.READ, "GET /v1/usage", many="usage")
def usage(
    by: str = "environment", since: float | None = None, until: float | None = None, environment: str | None = None
) -> list[UsageRow]:
    """What sandboxes used from `since` to `until` (unix seconds, to the hour; None: ever, now), of one environment or
    (None) of all that the caller may see. `by`: `environment`, `day`, `hour` or `tag:KEY`. Half a minute late.
    `InvalidRequest`, `EnvironmentNotFound`."""


@verb(Scope.READ, "GET /v1/overview")
def overview(environment: str | None = None, since: float | None = None) -> Overview:
    """The cluster at a glance, with series of the last hour: of one environment, or (None) of all that the caller may
    see. `since`: only the points after that time (unix seconds). `EnvironmentNotFound`."""


# The cluster


@verb(Scope.READ, "GET /v1/defaults")
def defaults() -> dict[str, Any]:
    """What a sandbox gets when its creator does not say: `SandboxDefaults` as a dict."""


@verb(Scope.READ, "GET /v1/nodes", everywhere=True, many="nodes")
def nodes() -> list[NodeInfo]:
    """The nodes of the cluster."""


@verb(Scope.ADMIN, "PUT /v1/nodes/{node}/cordon", everywhere=True, audit="node.cordon")
def cordon(node: str, why: str) -> NodeInfo:
    """From now on no new sandbox starts on the node; what runs there goes on. `node`: its id, or what the machine calls
    itself. Again: the reason is replaced. `NodeNotFound`."""


@verb(Scope.ADMIN, "DELETE /v1/nodes/{node}/cordon", everywhere=True, audit="node.uncordon")
def uncordon(node: str) -> NodeInfo:
    """New sandboxes may start on the node again. Without a cordon nothing happens. `NodeNotFound`."""


@verb(Scope.ADMIN, "POST /v1/nodes/{node}/drain", everywhere=True, audit="node.drain", takes="timeout")
def drain_node(node: str, why: str, force: bool, timeout: float) -> NodeDrain:
    """Cordons the node, waits up to `timeout` seconds (30 at most) until it is empty, and has it leave the cluster:
    its slots end, and all that Shoal did to the machine is undone. Ask again until it has left. `force`: what runs
    there is ended first, with the reason `evicted`. `NodeNotFound`."""


# Asked by the API's replicas and by nodes themselves, on behalf of no caller


@verb(None)
def stored_token(token_id: str) -> StoredToken | None:
    """For replicas: the token of that id with its digest, or None."""


@verb(None)
def token_ids() -> list[str]:
    """For replicas: the ids of all tokens, in any order."""


@verb(None)
def report(audit: Sequence[AuditEntry], counters: Mapping[Series, float], used: Mapping[str, float]) -> None:
    """For replicas: what one did since its last report. Entries for the audit log, amounts to add to the cluster's
    metrics, and when which token was last used."""


@verb(None)
def tunnel_secret() -> bytes:
    """For replicas: the secret that connect tokens of tunnels are signed with. 32 bytes, derived from the cluster's."""


@verb(None)
def session_secret() -> bytes:
    """For replicas: the secret that sessions of browsers are signed with. 32 bytes, derived from the cluster's."""


@verb(None, retry=Retry.NEVER)
def redeem_sign_in_code(code: str) -> str:
    """For replicas: the id of the token that a code signs in with, this once; `Unauthenticated`."""


@verb(None)
def wake(sandbox_id: str, deadline: float) -> Grant:
    """For replicas: access to a sandbox that a request came for, which is started where it is stopped and has
    `autostart`. Errors as of `start` and `grant`."""


@verb(None)
def orphans(sandbox_ids: Sequence[str], node_id: str) -> list[str]:
    """For nodes: those of `sandbox_ids` that do not live there."""


@verb(None)
def find_image(environment: str, cache_key: str) -> ImageRecord | None:
    """For builds: the image of an environment with that cache key, which counts as used now, or None."""


@verb(None, takes=SNAPSHOT_S)
def save_build(
    sandbox_id: str,
    cache_key: str,
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
    ttl: float | None = None,
    replace: bool = False,
) -> ImageRecord:
    """For builds: an image of kind `build` of a sandbox's files, with the defaults in `config` (as in
    `ImageRecord.config`; None: those of the image below). One with that cache key that there is: that one;
    `replace`: the key moves to the new one."""


@verb(None)
def unknown_images(image_ids: Sequence[str]) -> list[str]:
    """For nodes: those of `image_ids` that no image has."""


@verb(None, takes=BASE_S)
def base_image(reference: str, environment: str, pull: bool) -> BaseImage | None:
    """For builds: what a spec's image is, pulled where no node has it (not `pull`: None then). `ImageNotFound`."""


@verb(None, takes=60.0)
def admit_node(machine: str) -> NodeInfo:
    """For a machine that joins: returns once its node takes part. Raises what keeps it from that: the head does not
    reach it (`FailedPrecondition`, state `unreachable`), or its node actor's error."""


# Asked by scaling


@verb(None)
def report_capacity(capacity: Capacity) -> None:
    """For scaling: what it can launch, what it is launching, and where there is no capacity. Each report replaces the
    one before."""


@verb(None)
def demand() -> Demand:
    """For scaling: which sandboxes wait for room, and what each node does."""


VERBS: Mapping[str, Verb[..., Any]] = {each.name: each for each in [*globals().values()] if isinstance(each, Verb)}
"""All of them, by name."""
