"""Removes images from the machines that have them, once nothing needs them: those that were deleted, that have expired,
or that nobody has used for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.image_verbs import ImageVerbs
from shoal.actors.controller.images import Images
from shoal.actors.controller.nodes import Nodes
from shoal.model.errors import ShoalError
from shoal.model.images import ImageRecord, ImageState
from shoal.model.settings import Settings

log = logging.getLogger("shoal.images")

_SOON_S = 1.0
_TURN_S = 30.0
_REMOVE_S = 60.0


@dataclass(slots=True)
class ImageRemoval:
    """`call`: how actors are called; `clock`: unix seconds."""

    images: Images
    verbs: ImageVerbs
    changes: ImageChanges
    nodes: Nodes
    settings: Settings
    call: Callable[..., Awaitable[Any]]
    clock: Callable[[], float] = time.time
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._wake.set()  # an earlier controller may have left some

    def wake(self) -> None:
        """One is about to go."""
        self._wake.set()

    async def run(self) -> None:
        """Turn after turn: soon while there is something to remove, else twice a minute."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if await self.turn():
                    await asyncio.sleep(_SOON_S)
                    self._wake.set()
            except ShoalError as error:
                log.warning("images are not removed yet: %s", error)

    async def turn(self) -> bool:
        """Lets go what is due, and removes what nothing needs; whether something is left to remove."""
        await self._let_go_due()
        await self.changes.write_use()
        going = [record for record in self.images.all() if record.state is ImageState.GOING]
        if not going:
            return False
        counts = self.verbs.use.counts()
        for record in going:
            if not counts[record.id]:
                await self._remove(record)
        return any(self._can_go(record) for record in going)

    async def _let_go_due(self) -> None:
        now = self.clock()
        due = [
            record.id
            for record in self.images.all()
            if record.state is ImageState.READY
            and (
                (record.expires_at is not None and record.expires_at <= now)
                or not self.verbs.accounts.exists(record.environment)
            )
        ]
        due += [record.id for record in self.verbs.unused(now - self.settings.limits.unused_images)]
        if due:
            await self.changes.let_go(list(dict.fromkeys(due)), now)

    def _can_go(self, record: ImageRecord) -> bool:
        """Whether it is still there, on a machine that is."""
        return self.images.get(record.id) is not None and any(map(self.nodes.of_machine, record.machines))

    async def _remove(self, record: ImageRecord) -> None:
        """From each machine that has it. One that is away is waited for, as long as the store keeps what was."""
        left = [machine for machine in record.machines if not await self._gone_from(machine, record.id)]
        if left and (record.expires_at or 0.0) >= self.clock() - self.settings.store.retention:
            return
        await self.changes.remove(record.id)

    async def _gone_from(self, machine: str, image_id: str) -> bool:
        node_id = self.nodes.of_machine(machine)
        if node_id is None:
            return False
        try:
            await self.call(self.nodes.handle(node_id), "remove_image", image_id, timeout_s=_REMOVE_S)
        except ShoalError as error:
            log.info("image %s is not removed from machine %s yet: %s", image_id, machine, error)
            return False
        return True
