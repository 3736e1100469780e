"""The controller actor: what clients call. Each method says which errors it raises; all may be retried on `Unavailable`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.actors.controller.journal import Journal
from shoal.actors.controller.lifecycles import Lifecycles, ended_error
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.placement import check_fits
from shoal.actors.controller.rayslots import RaySlotMaker
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slots import Slot, SlotPool
from shoal.actors.handles import call
from shoal.model import grants
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import FailedPrecondition, ShoalError, Unavailable
from shoal.model.ids import new_sandbox_id
from shoal.model.info import Listing, NodeInfo, SandboxInfo
from shoal.model.settings import Settings
from shoal.model.spec import SandboxSpec, SlotShape
from shoal.model.validate import check_number, check_spec, check_tags

log = logging.getLogger("shoal.controller")

_TEND_S = 1.0
_LOOK_S = 5.0
_LONGEST_WAIT_S = 30.0
_READY_S = 60.0


class ControllerActor:
    """The cluster's registry. Made by `deploy` with `names.controller_options`; restarted by Ray for ever."""

    def __init__(self, settings: dict[str, Any], cluster: str, secret: bytes) -> None:
        self._settings = Settings.from_dict(settings)
        self._secret = secret
        defaults = self._settings.sandbox
        shape = SlotShape(defaults.cpu_request, defaults.memory_request, 0, None)
        self._maker = RaySlotMaker(self._settings.node.stop_grace)
        self._nodes = Nodes(self._settings, cluster, secret)
        self._registry = Registry(self._settings.limits.history)
        self._journal = Journal(Path(self._settings.state_dir) / "controller" / f"{cluster}.sqlite")
        self._pool = SlotPool(self._maker, self._settings.node, shape)
        self._lives = Lifecycles(self._registry, self._journal, self._pool, self._maker, self._nodes)
        self._opening: asyncio.Task[None] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._draining = False

    # -- sandboxes ----------------------------------------------------------------------------------

    async def create(
        self, spec: SandboxSpec, deadline: float, wait: bool = True, caller: Caller = INSIDE
    ) -> tuple[SandboxInfo, grants.Grant | None]:
        """Creates a sandbox and returns it running, with a way to its agent, within `deadline` seconds; the same idempotency key gives the
        same sandbox again, without a way once it has ended.

        Raises `InvalidRequest`, `AlreadyExists`, `ImageNotFound`, `CommandNotFound`, `DeadlineExceeded`; after any of them nothing is left.
        """
        check_spec(spec, self._settings.limits)
        check_number("deadline", deadline, 0, self._settings.limits.create_deadline, "seconds")
        await self._open()
        if self._draining:
            raise Unavailable("the cluster is being shut down; nothing was created")
        record = self._registry.same_request(spec)
        if record is None:
            check_fits(spec, self._nodes.machines())
            record = SandboxRecord(new_sandbox_id(), spec, time.time(), dict(spec.tags))
            self._registry.add(record)
        await self._lives.create(record, time.time() + deadline)
        return record.info, None if record.ended else self._grant(record)

    async def get(self, sandbox_id: str, caller: Caller = INSIDE) -> SandboxInfo:
        """Its state, its end included; `SandboxNotFound`."""
        await self._open()
        return self._registry.get(sandbox_id).info

    async def find(self, name: str, environment: str, caller: Caller = INSIDE) -> SandboxInfo:
        """The living sandbox of that name, else the last that had it; `SandboxNotFound`."""
        await self._open()
        return self._registry.find(name, environment).info

    async def list_sandboxes(self, listing: Listing, caller: Caller = INSIDE) -> list[SandboxInfo]:
        """Sandboxes, newest first."""
        await self._open()
        return [record.info for record in self._registry.select(listing)]

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str], caller: Caller = INSIDE) -> SandboxInfo:
        """Replaces its tags; `SandboxEnded` once it ended."""
        check_tags(tags)
        await self._open()
        record = self._registry.get(sandbox_id)
        if record.ended:
            raise ended_error(record)
        record.tags = dict(tags)
        await self._journal.put(record)
        return record.info

    async def terminate(self, sandbox_id: str, caller: Caller = INSIDE) -> SandboxInfo:
        """Ends it and returns once its container is gone. Of one that has ended: its end."""
        await self._open()
        record = self._registry.get(sandbox_id)
        await self._lives.terminate(record, "terminated on request")
        return record.info

    async def wait(self, sandbox_id: str, timeout: float, caller: Caller = INSIDE) -> SandboxInfo:
        """Its state once it has ended, or after `timeout` seconds (30 at most), whichever is first."""
        await self._open()
        record = self._registry.get(sandbox_id)
        try:
            await asyncio.wait_for(record.settled.wait(), min(timeout, _LONGEST_WAIT_S))
        except TimeoutError:
            pass
        return record.info

    async def give_up(self, keys: list[tuple[str, str]], caller: Caller = INSIDE) -> list[tuple[str, str]]:
        """Ends what a create has made or is making whose caller has gone; `keys`: (environment, idempotency key). Returns those it found."""
        await self._open()
        found = [(key, record) for key in keys if (record := self._registry.keyed(*key)) is not None]
        await asyncio.gather(*(self._lives.terminate(record, "its creator gave up") for _, record in found))
        return [key for key, _ in found]

    async def grant(self, sandbox_id: str, caller: Caller = INSIDE) -> grants.Grant:
        """Where its agent is reached, and a token; `SandboxEnded`, `SandboxNotFound`, `FailedPrecondition` before it runs."""
        await self._open()
        record = self._registry.get(sandbox_id)
        if record.ended:
            raise ended_error(record)
        return self._grant(record)

    def _grant(self, record: SandboxRecord) -> grants.Grant:
        if record.began is None:
            raise FailedPrecondition(f"sandbox {record.id} does not run yet", state=record.life.state.value)
        expires = time.time() + grants.TTL_S
        token = grants.sign(self._secret, record.id, record.began.key, grants.CLIENT_SCOPES, expires)
        return grants.Grant(record.id, self._nodes.relay(record.began.node_id, record.began.relay), token, expires)

    async def logs(self, sandbox_id: str, fd: int, offset: int, caller: Caller = INSIDE) -> tuple[int, bytes, bool]:
        """Output of its own command as kept after its end: (offset of the first byte, bytes, whether they are the last)."""
        await self._open()
        record = self._registry.get(sandbox_id)
        if not record.ended:
            raise FailedPrecondition(
                f"sandbox {sandbox_id} lives: its agent has its output", state=record.life.state.value
            )
        if record.began is None or not self._nodes.alive(record.began.node_id):
            return offset, b"", True
        result: tuple[int, bytes, bool] = await call(
            self._nodes.handle(record.began.node_id), "read_log", sandbox_id, fd, offset
        )
        return result

    # -- the cluster ----------------------------------------------------------------------------------

    async def defaults(self, caller: Caller = INSIDE) -> dict[str, Any]:
        """What a sandbox gets when its creator does not say: `SandboxDefaults` as a dict."""
        return self._settings.sandbox.model_dump()

    async def nodes(self, caller: Caller = INSIDE) -> list[NodeInfo]:
        """The nodes of the cluster."""
        await self._open()
        return await self._nodes.infos()

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

    async def strangers(self, sandbox_ids: list[str], node_id: str) -> list[str]:
        """Those of `sandbox_ids` that a node has a container of though they do not live there: it removes them."""
        await self._open()
        lives_here = {r.id for r in self._registry.live() if r.began is None or r.began.node_id == node_id}
        return [sandbox_id for sandbox_id in sandbox_ids if sandbox_id not in lives_here]

    async def drain(self) -> int:
        """Ends every sandbox, removes every slot, closes every node: for `shoal down`. Returns how many sandboxes it ended."""
        self._draining = True
        await self._open()
        living = self._registry.live()
        await asyncio.gather(
            *(self._lives.terminate(r, "the cluster was shut down") for r in living), return_exceptions=True
        )
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._pool.close()
        await asyncio.gather(*(call(handle, "close") for handle in self._nodes.handles()))
        return len(living)

    # -- inside ---------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Done once by the first call after each start of the actor (whose constructor can't wait)."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._do_open())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                self._opening = None  # the next call tries again
            raise

    async def _do_open(self) -> None:
        self._registry.restore(await self._journal.open())
        await self._nodes.refresh()
        await self._recover()
        self._loops = [
            asyncio.create_task(self._every(_TEND_S, self._tend_slots)),
            asyncio.create_task(self._every(_LOOK_S, self._look_at_nodes)),
        ]

    async def _recover(self) -> None:
        """Takes up what an earlier controller left: slots that live, sandboxes in them, sandboxes half made."""
        held: dict[str, Slot] = {}
        for slot, sandbox_id in await self._maker.existing():
            if sandbox_id is None:
                self._pool.put(slot)
            else:
                held[sandbox_id] = slot
        living = {record.id: record for record in self._registry.live()}
        for sandbox_id, slot in held.items():
            if sandbox_id not in living:
                self._pool.discard(slot)  # ended as far as anybody was told; the node sweeps its container
        if living:
            log.warning("taking up %d sandboxes", len(living))
        results = await asyncio.gather(
            *(self._lives.resume(record, held.get(record.id)) for record in living.values()), return_exceptions=True
        )
        for record, result in zip(living.values(), results, strict=True):
            if isinstance(result, BaseException):
                log.error("taking up %s: %r", record.id, result)

    async def _tend_slots(self) -> None:
        await self._pool.tend()

    async def _look_at_nodes(self) -> None:
        for node_id in await self._nodes.refresh():
            log.warning("node %s is lost", node_id[:8])
            await self._lives.lose_node(node_id)
        limits = self._settings.limits
        await self._journal.drop(self._registry.expire(time.time() - limits.history_age, keep=0))

    async def _every(self, seconds: float, body: Any) -> None:
        while True:
            try:
                await body()
            except (ShoalError, OSError) as error:
                log.warning("%s: %s", body.__name__, error)
            await asyncio.sleep(seconds)
