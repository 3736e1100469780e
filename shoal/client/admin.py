"""A client's calls for administrators: environments, tokens, nodes, the audit log, events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal.client.dual_method import dual_method
from shoal.client.events import Events
from shoal.client.html import Listed
from shoal.model import verbs
from shoal.model.access import AuditEntry, Environment, Quota, Scope, TokenInfo
from shoal.model.errors import DeadlineExceeded, InvalidRequest
from shoal.model.info import NodeInfo
from shoal.model.validate import check_name, check_number

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

_MAX_AUDIT = 1000
_MAX_DRAIN_S = 366 * 86400
_MAX_LIFETIME_S = 10 * 366 * 86400


class Administration:
    """The administrators' part of a `Client`. Over HTTP, all but `events` need a token of scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # Environments

    @dual_method
    async def create_environment(
        self,
        name: str,
        *,
        sandboxes: int | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        creates_per_minute: int | None = None,
        volume_bytes: int | None = None,
        volume_files: int | None = None,
    ) -> Environment:
        """Creates an environment with a quota: the most that its living sandboxes may use together. None: unlimited.

        `cpu` in cores and `memory` in MiB count the sandboxes' limits; `volume_bytes` and `volume_files` the limits of
        its volumes, each of which must have one then. Raises `AlreadyExists`, `InvalidRequest`,
        `PermissionDenied`.
        """
        check_name("name", name)
        quota = Quota(sandboxes, cpu, memory, creates_per_minute, volume_bytes, volume_files)
        return await self.transport.ask(verbs.create_environment, name, quota)

    @dual_method
    async def environments(self) -> Sequence[Environment]:
        """The environments that you may see, by name, with quota and usage."""
        return Listed(await self.transport.ask(verbs.environments), "name usage.sandboxes quota.sandboxes created_at")

    @dual_method
    async def environment(self, name: str) -> Environment:
        """One environment; `EnvironmentNotFound`."""
        check_name("name", name)
        return await self.transport.ask(verbs.environment, name)

    @dual_method
    async def set_quota(
        self,
        name: str,
        *,
        sandboxes: int | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        creates_per_minute: int | None = None,
        volume_bytes: int | None = None,
        volume_files: int | None = None,
    ) -> Environment:
        """Replaces an environment's whole quota: what is not given becomes unlimited. No sandbox is ended.

        Raises `PermissionDenied` for the environment's own administrators.
        """
        check_name("name", name)
        quota = Quota(sandboxes, cpu, memory, creates_per_minute, volume_bytes, volume_files)
        return await self.transport.ask(verbs.set_quota, name, quota)

    @dual_method
    async def delete_environment(self, name: str) -> None:
        """Deletes an environment and revokes its tokens. Its name is free again once its history is forgotten.

        Raises `FailedPrecondition` while sandboxes live in it, `InvalidRequest` for `main`.
        """
        check_name("name", name)
        await self.transport.ask(verbs.delete_environment, name)

    # Tokens

    @dual_method
    async def create_token(
        self,
        name: str,
        *,
        environment: str | None = None,
        scope: Scope | str = Scope.RUN,
        expires_in: float | None = None,
    ) -> tuple[TokenInfo, str]:
        """Creates an API token; returns it with its text, which cannot be retrieved later.

        `environment`: the only one it may see (None: this client's), or `"*"` for all. `scope`: `read` (look), `run`
        (also create and use sandboxes) or `admin` (also manage tokens). `expires_in` in seconds; None: never. Raises
        `PermissionDenied` if the token could do more than you can.
        """
        try:
            wanted = Scope(scope)
        except ValueError:
            raise InvalidRequest(f"scope: {scope!r} is not a scope; use read, run or admin", field="scope") from None
        if expires_in is not None:
            check_number("expires_in", expires_in, 0, _MAX_LIFETIME_S, "seconds")
        where = environment if environment is not None else await self.transport.default_environment()
        return await self.transport.ask(verbs.create_token, name, where, wanted, expires_in)

    @dual_method
    async def tokens(self) -> Sequence[TokenInfo]:
        """The tokens that you may see, newest first, with revoked and expired ones, without their texts."""
        columns = "id name environment scope created_at expires_at revoked_at"
        return Listed(await self.transport.ask(verbs.tokens), columns)

    @dual_method
    async def revoke_token(self, token_id: str) -> TokenInfo:
        """Revokes a token (`tk-…`) at once. May be repeated; raises `TokenNotFound`."""
        return await self.transport.ask(verbs.revoke_token, token_id)

    # Nodes

    @dual_method
    async def cordon(self, node: str, *, why: str) -> NodeInfo:
        """No new sandbox starts on a node (an id from `nodes`) from now on; what runs there goes on.

        `why` is shown with the node. Raises `NodeNotFound`.
        """
        return await self.transport.ask(verbs.cordon, node, why)

    @dual_method
    async def uncordon(self, node: str) -> NodeInfo:
        """Lets sandboxes start on a node again. Raises `NodeNotFound`."""
        return await self.transport.ask(verbs.uncordon, node)

    @dual_method
    async def drain_node(
        self, node: str, *, why: str = "drained", timeout: float = 3600.0, force: bool = False
    ) -> None:
        """Cordons a node, waits until no sandbox runs there, and takes it out of the cluster.

        `force`: its sandboxes are ended, with the reason `evicted`. Raises `DeadlineExceeded` where it is not empty
        after `timeout` seconds: then it stays cordoned. `NodeNotFound`; `FailedPrecondition` for the head.
        """
        check_number("timeout", timeout, 0, _MAX_DRAIN_S, "seconds")
        deadline = time.monotonic() + timeout
        while True:
            wait_s = min(max(0.0, deadline - time.monotonic()), verbs.LONGEST_WAIT_S)
            told = await self.transport.ask(verbs.drain_node, node, why, force, wait_s)
            if told.left:
                return
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"{told.sandboxes} sandboxes still run on the node after {timeout:g} s; it stays cordoned: "
                    "drain it again, with force to end them",
                    field="timeout",
                )

    # Looking back

    @dual_method
    async def audit(self, *, limit: int = 100, before: int | None = None) -> Sequence[AuditEntry]:
        """The audit log, newest first: up to `limit` (at most 1,000) entries with an id below `before`."""
        check_number("limit", limit, 0, _MAX_AUDIT, "entries", whole=True)
        columns = "at action outcome token environment target"
        return Listed(await self.transport.ask(verbs.audit, before, limit), columns)

    def events(
        self, *, after: int | None = None, sandbox_id: str | None = None, environment: str | None = None
    ) -> Events:
        """A live, endless stream of what happens to sandboxes: iterate with `for` or `async for`, and `close` it.

        `after`: start after the event with this id; None: from now on. `sandbox_id`, `environment`: only their events.
        """
        return Events(self.transport, after, sandbox_id, environment)
