"""The object storage as the controller keeps it: nodes learn here how to reach it."""

from __future__ import annotations

import asyncio

from shoal.actors.objects import ObjectAccess, ObjectKeeper
from shoal.model.errors import FailedPrecondition, NotFound

OBJECTS_S = 2.0
"""How soon a server of the cluster's own that has died is started anew."""

_OWNER = "cluster"
_MOST_BYTES = 256


class ObjectStorage:
    """The keeper, used by one thread at a time. `cluster`: whose objects these are."""

    def __init__(self, keeper: ObjectKeeper, cluster: str) -> None:
        self._keeper = keeper
        self._cluster = cluster
        self._claimed = False
        self._turn = asyncio.Lock()

    async def access(self) -> ObjectAccess:
        """How to reach the storage; a server of the cluster's own runs then. `Unavailable`, `FailedPrecondition`: it
        belongs to another cluster, or cannot be started."""
        async with self._turn:
            access = await asyncio.to_thread(self._keeper.access)
            if not self._claimed:
                await asyncio.to_thread(_claim, access, self._cluster)
                self._claimed = True
            return access

    async def tend(self) -> None:
        """Starts such a server anew if it was running and has died."""
        async with self._turn:
            await asyncio.to_thread(self._keeper.tend)


def _claim(access: ObjectAccess, cluster: str) -> None:
    """Two clusters in one place would remove each other's images."""
    store = access.connect()
    try:
        try:
            owner = b"".join(store.read(_OWNER, length=_MOST_BYTES)).decode(errors="replace")
        except NotFound:
            store.put(_OWNER, cluster.encode())
            return
    finally:
        store.close()
    if owner != cluster:
        raise FailedPrecondition(
            f"objects.prefix: cluster {owner} has its images there; choose another prefix or bucket",
            state="other_cluster",
            field="objects.prefix",
        )
