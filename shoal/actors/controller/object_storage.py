"""The object storage as the controller keeps it: nodes learn here how to reach it."""

from __future__ import annotations

import asyncio

from shoal.actors.objects import ObjectAccess, ObjectKeeper

OBJECTS_S = 2.0
"""How soon a server of the cluster's own that has died is started anew."""


class ObjectStorage:
    """The keeper, used by one thread at a time."""

    def __init__(self, keeper: ObjectKeeper) -> None:
        self._keeper = keeper
        self._turn = asyncio.Lock()

    async def access(self) -> ObjectAccess:
        """How to reach the storage; a server of the cluster's own runs then. `Unavailable`, `FailedPrecondition`."""
        async with self._turn:
            return await asyncio.to_thread(self._keeper.access)

    async def tend(self) -> None:
        """Starts such a server anew if it was running and has died."""
        async with self._turn:
            await asyncio.to_thread(self._keeper.tend)
