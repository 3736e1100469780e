"""The controller actor: what clients and nodes call."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray

from shoal.actors.controller.handlers import Handler, answer, handlers
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.controller.parts import Parts, open_parts
from shoal.actors.controller.rayslots import RaySlotMaker
from shoal.actors.controller.store import Store
from shoal.actors.core_files import leave_no_core_file
from shoal.actors.garbage import collect_rarely
from shoal.actors.handles import Carrying, find_actor
from shoal.actors.messages import Drained
from shoal.actors.objects import ObjectAccess, ObjectKeeper
from shoal.actors.volumes import VolumeAccess, VolumeKeeper
from shoal.model import tasks, telemetry
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import Unavailable
from shoal.model.ids import SCALER
from shoal.model.settings import Settings

log = logging.getLogger("shoal.controller")

_READY_S = 60.0


class ControllerActor(Carrying):
    """The cluster's registry. Made by `deploy` with `names.controller_options`; restarted by Ray for ever.

    `store` opens what must outlive it, from the settings; `objects` the object storage, from the settings and the
    head's address; `builder` starts what builds images, from the settings; `volumes`: what keeps volumes, the
    same.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        cluster: str,
        secret: bytes,
        store: Callable[[dict[str, Any]], Store],
        objects: Callable[[dict[str, Any], str], ObjectKeeper],
        builder: Callable[[dict[str, Any]], Any] | None = None,
        volumes: Callable[[dict[str, Any]], VolumeKeeper] | None = None,
    ) -> None:
        collect_rarely()
        self._settings = Settings.from_dict(settings)
        self._secret = secret
        self._store = store(settings)
        self._start_builder = None if builder is None else partial(builder, settings)
        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._objects = ObjectStorage(objects(settings, address), cluster)
        self._keeper = None if volumes is None else volumes(settings)
        self._nodes = Nodes(self._settings, cluster, secret)
        leave_no_core_file()
        telemetry.begin(self._settings.telemetry, "controller")
        self._maker = RaySlotMaker(self._settings.node.stop_grace, self._settings.telemetry.log_format)
        self._parts: Parts | None = None
        self._handlers: Mapping[str, Handler] = {}
        self._opening: asyncio.Task[Parts] | None = None

    async def call(
        self,
        verb: str,
        arguments: tuple[Any, ...],
        caller: Caller = INSIDE,
        carrier: Mapping[str, str] | None = None,
    ) -> Any:
        """What a verb of `shoal.model.verbs` gives, or the error that it raises. `arguments`: all of them, in order;
        `carrier`: what the call belongs to, as `call_context.carried` tells it."""
        if self._parts is None:
            await self._open()
        return await answer(self._handlers, verb, arguments, caller, carrier)

    async def ready(self) -> int:
        """Waits until at least one node answers; how many do. Raises what keeps a node from it, `Unavailable` after a
        minute."""
        await self._open()
        limit = time.monotonic() + _READY_S
        while not self._nodes.capacities():
            failure = self._nodes.failure()
            if failure is not None:
                raise failure
            if time.monotonic() > limit:
                raise Unavailable(
                    "no node answered within a minute; see the node actor's log in Ray's session directory"
                )
            await asyncio.sleep(0.1)
            await self._nodes.refresh()
        return len(self._nodes.capacities())

    async def object_access(self) -> ObjectAccess:
        """How to reach the object storage, for nodes: its server runs then, if it is the cluster's own."""
        return await self._objects.access()

    async def bucket_values(self, access: str) -> dict[str, str]:
        """For nodes: the credentials of a bucket that a sandbox mounts. `NotFound`, `SecretNotFound`."""
        return await (await self._open()).secrets.bucket_values(access)

    async def volume_access(self, volume_id: str) -> VolumeAccess:
        """For nodes: how to mount a volume. `VolumeNotFound`, `Unavailable`."""
        return await (await self._open()).volumes.access(volume_id)

    async def ensure_stored(self, digest: str) -> None:
        """For nodes: returns once an image is in the object storage. `ImageNotFound`, `Unavailable`."""
        await (await self._open()).image_storage.ensure(digest)

    async def image_damaged(self, digest: str) -> None:
        """For nodes: an image is not in the object storage as it was put there."""
        await (await self._open()).image_storage.damaged(digest)

    async def drain(self) -> Drained:
        """Ends every sandbox, removes every slot, closes every node: for `shoal down`."""
        return await (await self._open()).drain()

    async def _open(self) -> Parts:
        """The parts, opened by the first call after each start of the actor (whose constructor can't wait)."""
        if self._parts is not None:
            return self._parts
        if self._opening is None:
            self._opening = tasks.shared(
                open_parts(
                    self._settings,
                    self._secret,
                    self._store,
                    self._nodes,
                    self._maker,
                    _end,
                    objects=self._objects,
                    start_builder=self._start_builder,
                    keeper=self._keeper,
                ),
                "open controller",
            )
        opening = self._opening
        try:
            parts = await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                self._opening = None  # the next call tries again
            raise
        launchable = parts.demand.launchable
        if launchable.reported.types == () and await asyncio.to_thread(find_actor, SCALER) is not None:
            launchable.awaited = True
        self._handlers = handlers(parts)
        self._parts = parts
        return parts


def _end() -> None:
    """Another controller has taken the store over. Where this one is still the cluster's, Ray starts it anew, and it
    takes over in turn."""
    log.error("another controller writes to the store; this one ends")
    os._exit(1)
