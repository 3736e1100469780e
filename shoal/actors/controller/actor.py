"""The controller actor: what clients call. Each method hands on to the part that does it, whose docstring says which errors it raises.

`caller`: on whose behalf. All may be called again on `Unavailable`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.parts import Parts, open_parts
from shoal.actors.controller.rayslots import RaySlotMaker
from shoal.actors.controller.sandboxes import Made
from shoal.actors.controller.store import Store
from shoal.model.access import (
    INSIDE,
    AuditEntry,
    Caller,
    Environment,
    Quota,
    SandboxEvent,
    Scope,
    StoredToken,
    TokenInfo,
    Tunnel,
)
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.grants import Grant
from shoal.model.info import Listing, NodeInfo, Page, SandboxInfo
from shoal.model.settings import Settings
from shoal.model.spec import SandboxSpec

log = logging.getLogger("shoal.controller")

_READY_S = 60.0


class ControllerActor:
    """The cluster's registry. Made by `deploy` with `names.controller_options`; restarted by Ray for ever.

    `store` opens what must outlive it, from the settings.
    """

    def __init__(
        self, settings: dict[str, Any], cluster: str, secret: bytes, store: Callable[[dict[str, Any]], Store]
    ) -> None:
        self._settings = Settings.from_dict(settings)
        self._secret = secret
        self._store = store(settings)
        self._nodes = Nodes(self._settings, cluster, secret)
        self._maker = RaySlotMaker(self._settings.node.stop_grace)
        self._parts: Parts | None = None
        self._opening: asyncio.Task[Parts] | None = None

    # -- sandboxes ----------------------------------------------------------------------------------

    async def create(self, spec: SandboxSpec, deadline: float, wait: bool = True, caller: Caller = INSIDE) -> Made:
        return await (await self._open()).sandboxes.create(spec, deadline, wait, caller)

    async def create_many(
        self, specs: Sequence[SandboxSpec], deadline: float, wait: bool = True, caller: Caller = INSIDE
    ) -> list[Made | ShoalError]:
        return await (await self._open()).sandboxes.create_many(specs, deadline, wait, caller)

    async def give_up(self, keys: Sequence[tuple[str, str]], caller: Caller = INSIDE) -> list[tuple[str, str]]:
        return await (await self._open()).sandboxes.give_up(keys, caller)

    async def get(self, sandbox_id: str, caller: Caller = INSIDE) -> SandboxInfo:
        return await (await self._open()).sandboxes.get(sandbox_id, caller)

    async def find(self, name: str, environment: str, caller: Caller = INSIDE) -> SandboxInfo:
        return await (await self._open()).sandboxes.find(name, environment, caller)

    async def list_sandboxes(self, listing: Listing, caller: Caller = INSIDE) -> Page:
        return await (await self._open()).sandboxes.select(listing, caller)

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str], caller: Caller = INSIDE) -> SandboxInfo:
        return await (await self._open()).sandboxes.set_tags(sandbox_id, tags, caller)

    async def terminate(self, sandbox_id: str, caller: Caller = INSIDE) -> SandboxInfo:
        return await (await self._open()).sandboxes.terminate(sandbox_id, caller)

    async def wait(self, sandbox_id: str, timeout: float, caller: Caller = INSIDE) -> SandboxInfo:
        return await (await self._open()).sandboxes.wait(sandbox_id, timeout, caller)

    async def grant(self, sandbox_id: str, caller: Caller = INSIDE) -> Grant:
        return await (await self._open()).sandboxes.grant(sandbox_id, caller)

    async def logs(self, sandbox_id: str, fd: int, offset: int, caller: Caller = INSIDE) -> tuple[int, bytes, bool]:
        return await (await self._open()).sandboxes.logs(sandbox_id, fd, offset, caller)

    async def orphans(self, sandbox_ids: list[str], node_id: str) -> list[str]:
        """For nodes: those of `sandbox_ids` that do not live there."""
        return (await self._open()).sandboxes.orphans(sandbox_ids, node_id)

    # -- tunnels ------------------------------------------------------------------------------------

    async def expose(self, sandbox_id: str, port: int, protocol: str, public: bool, caller: Caller = INSIDE) -> Tunnel:
        parts = await self._open()
        record = await parts.sandboxes.history.get(sandbox_id, caller)
        return await parts.tunnels.expose(record, port, protocol, public, caller)

    async def unexpose(self, sandbox_id: str, port: int, caller: Caller = INSIDE) -> None:
        parts = await self._open()
        await parts.tunnels.unexpose(await parts.sandboxes.history.get(sandbox_id, caller), port, caller)

    async def tunnels(self, sandbox_id: str, caller: Caller = INSIDE) -> list[Tunnel]:
        parts = await self._open()
        return parts.tunnels.tunnels(await parts.sandboxes.history.get(sandbox_id, caller))

    async def tunnel_token(self, sandbox_id: str, port: int, expires_in: float, caller: Caller = INSIDE) -> Tunnel:
        parts = await self._open()
        return await parts.tunnels.token(await parts.sandboxes.history.get(sandbox_id, caller), port, expires_in)

    async def tunnel_secret(self, caller: Caller = INSIDE) -> bytes:
        """For the API's replicas alone."""
        return (await self._open()).tunnels.secret

    # -- environments and tokens --------------------------------------------------------------------

    async def create_environment(self, name: str, quota: Quota, caller: Caller = INSIDE) -> Environment:
        return await (await self._open()).accounts.create_environment(name, quota, caller)

    async def environments(self, caller: Caller = INSIDE) -> list[Environment]:
        return (await self._open()).accounts.environments(caller)

    async def environment(self, name: str, caller: Caller = INSIDE) -> Environment:
        return (await self._open()).accounts.environment(name, caller)

    async def set_quota(self, name: str, quota: Quota, caller: Caller = INSIDE) -> Environment:
        return await (await self._open()).accounts.set_quota(name, quota, caller)

    async def delete_environment(self, name: str, caller: Caller = INSIDE) -> None:
        await (await self._open()).accounts.delete_environment(name, caller)

    async def create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None, caller: Caller = INSIDE
    ) -> tuple[TokenInfo, str]:
        return await (await self._open()).accounts.create_token(name, environment, scope, expires_in, caller)

    async def tokens(self, caller: Caller = INSIDE) -> list[TokenInfo]:
        return (await self._open()).accounts.tokens(caller)

    async def revoke_token(self, token_id: str, caller: Caller = INSIDE) -> TokenInfo:
        return await (await self._open()).accounts.revoke_token(token_id, caller)

    async def stored_token(self, token_id: str, caller: Caller = INSIDE) -> StoredToken | None:
        """For the API's replicas alone."""
        return (await self._open()).accounts.stored_token(token_id)

    # -- looking back -------------------------------------------------------------------------------

    async def audit(self, before: int | None, limit: int, caller: Caller = INSIDE) -> list[AuditEntry]:
        return await (await self._open()).event_feed.audit(before, limit, caller)

    async def events(
        self,
        after: int | None,
        sandbox_id: str | None,
        environment: str | None,
        wait_s: float,
        caller: Caller = INSIDE,
    ) -> list[SandboxEvent]:
        return await (await self._open()).event_feed.events(after, sandbox_id, environment, wait_s, caller)

    async def last_event(self, caller: Caller = INSIDE) -> int:
        return (await self._open()).writer.events.last

    async def report(
        self,
        audit: Sequence[AuditEntry],
        counters: Mapping[str, float],
        used: dict[str, float],
        caller: Caller = INSIDE,
    ) -> None:
        """For the API's replicas alone."""
        parts = await self._open()
        await parts.event_feed.report(audit, used)
        parts.metrics.report(counters)  # last: what a replica could not report it reports again

    async def metrics(self, caller: Caller = INSIDE) -> dict[str, float]:
        return await (await self._open()).collect_metrics()

    # -- the cluster --------------------------------------------------------------------------------

    async def defaults(self, caller: Caller = INSIDE) -> dict[str, Any]:
        """What a sandbox gets when its creator does not say: `SandboxDefaults` as a dict."""
        return self._settings.sandbox.model_dump()

    async def nodes(self, caller: Caller = INSIDE) -> list[NodeInfo]:
        """The nodes of the cluster."""
        return await (await self._open()).nodes.infos()

    async def ready(self) -> int:
        """Waits until at least one node answers; how many do. Raises what keeps a node from it, `Unavailable` after a minute."""
        await self._open()
        limit = time.monotonic() + _READY_S
        while not self._nodes.machines():
            failure = self._nodes.failure()
            if failure is not None:
                raise failure
            if time.monotonic() > limit:
                raise Unavailable(
                    "no node answered within a minute; see the node actor's log in Ray's session directory"
                )
            await asyncio.sleep(0.1)
            await self._nodes.refresh()
        return len(self._nodes.machines())

    async def drain(self) -> int:
        """Ends every sandbox, removes every slot, closes every node: for `shoal down`. Returns how many sandboxes it ended."""
        return await (await self._open()).drain()

    async def _open(self) -> Parts:
        """The parts, opened by the first call after each start of the actor (whose constructor can't wait)."""
        if self._parts is not None:
            return self._parts
        if self._opening is None:
            self._opening = asyncio.create_task(
                open_parts(self._settings, self._secret, self._store, self._nodes, self._maker, _end)
            )
        opening = self._opening
        try:
            self._parts = await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                self._opening = None  # the next call tries again
            raise
        return self._parts


def _end() -> None:
    """Another controller has taken the store over. Where this one is still the cluster's, Ray starts it anew, and it takes over in turn."""
    log.error("another controller writes to the store; this one ends")
    os._exit(1)
