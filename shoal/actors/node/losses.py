"""How the containers of a node were lost, and who waits to hear it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from shoal.actors.engines.contract import Container
from shoal.actors.messages import ContainerLoss
from shoal.actors.node.records import ContainerRecord
from shoal.model.spec import MIB
from shoal.model.states import Reason

_KILLED = 137
"""The exit code of an agent that was killed, which nobody inside can do."""

REMOVED = ContainerLoss(Reason.TERMINATED, None, "its container was removed")
"""By the node itself: nothing runs there any more, and the rest goes by itself."""


class Losses:
    """The losses by container. `records`: the containers that there are."""

    def __init__(self, records: Mapping[str, ContainerRecord]) -> None:
        self._records = records
        self._losses: dict[str, asyncio.Future[ContainerLoss]] = {}

    async def watch(self, key: str) -> ContainerLoss:
        """Waits until the container is lost or removed, and returns how."""
        if key not in self._records:
            return ContainerLoss(Reason.EVICTED, None, "its container is not on the node")
        return await asyncio.shield(self._future(key))

    def of(self, key: str) -> ContainerLoss | None:
        """How the container was lost, if it was."""
        future = self._losses.get(key)
        return future.result() if future is not None and future.done() else None

    def note(self, key: str, loss: ContainerLoss) -> None:
        """Notes how a container was lost; the first report counts."""
        if key in self._records and not (future := self._future(key)).done():
            future.set_result(loss)

    def note_full_disk(self, key: str, used: int) -> None:
        """It wrote more than its disk holds: so many bytes."""
        record = self._records.get(key)
        limit = "" if record is None else f", limit {record.shape.disk} MiB"
        message = f"it wrote more than its disk holds ({used // MIB} MiB{limit}); raise disk="
        self.note(key, ContainerLoss(Reason.OUT_OF_DISK, None, message))

    def forget(self, key: str, end: ContainerLoss) -> None:
        """The container is gone, or stopped, by the node itself: whoever still waits is told `end`."""
        future = self._losses.pop(key, None)
        if future is not None and not future.done():
            future.set_result(end)

    def _future(self, key: str) -> asyncio.Future[ContainerLoss]:
        future = self._losses.get(key)
        if future is None:
            future = self._losses[key] = asyncio.get_running_loop().create_future()
        return future


def out_of_memory(record: ContainerRecord | None) -> ContainerLoss:
    """The kernel killed something in the container for its memory limit."""
    limit = "" if record is None else f" of {record.shape.memory} MiB"
    return ContainerLoss(
        Reason.OUT_OF_MEMORY, 137, f"it needed more memory than its limit{limit}; raise memory=(request, limit)"
    )


def loss_by_exit(container: Container, record: ContainerRecord | None) -> ContainerLoss:
    """Why the agent of a container has ended: out of memory, killed from outside, or by a defect."""
    if container.out_of_memory:
        return out_of_memory(record)
    code = container.exit_code
    # gVisor shields the first process of a container from nobody, as Linux does from those inside.
    by = "from outside" if record is None or record.shape.runtime != "runsc" else "from outside, or by code inside"
    how = f"was killed {by}" if code == _KILLED else f"ended by itself with exit code {code}"
    return ContainerLoss(Reason.EVICTED, None, f"its agent {how}")
