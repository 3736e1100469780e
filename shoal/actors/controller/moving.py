"""Takes the files of a stopped persistent sandbox off its machine: an image of them goes into the object storage, and
the sandbox starts from that on another machine. Then it has a disk of its own there, and the image below is let go once
nothing needs it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from shoal.actors.controller.adoption import Adoption
from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.image_storage import PUT_S, ImageStorage
from shoal.actors.controller.phase import Event
from shoal.actors.controller.record import HeldImage
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.run import Outcome, Run
from shoal.actors.controller.snapshots import Snapshots
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, ShoalError
from shoal.model.verbs import SNAPSHOT_S

_TTL_S = 2 * (SNAPSHOT_S + PUT_S)
"""Should this controller be killed before it lets the image go."""


@dataclass(slots=True)
class Moving:
    """`clock`: unix seconds."""

    snapshots: Snapshots
    storage: ImageStorage
    changes: ImageChanges
    writer: RecordWriter
    adoption: Adoption
    clock: Callable[[], float] = time.time

    async def move(self, run: Run) -> Outcome:
        """Has an image of its files made and stored."""
        try:
            if run.record.mounted:
                raise FailedPrecondition(
                    f"sandbox {run.record.id} has written into images that are mounted into it, which are in no "
                    "snapshot; start it on its machine, and unmount them",
                    state="mounted",
                )
            image = await self.snapshots.of_disk(run.record, _TTL_S)
            try:
                await self.storage.ensure(image.digest)
            except BaseException:
                tasks.shared(self._let_go(image.id), "let image go")
                raise
        except ShoalError as error:
            return Outcome(Event.NOT_MOVED, error=error)
        return Outcome(Event.MOVED, disk=HeldImage(image.id, image.digest))

    async def write_move(self, run: Run) -> Outcome:
        """Puts on record that no machine has its files, and only then removes them from the one that had them. The
        image goes once the sandbox does not need it any more."""
        record = run.record
        assert record.disk is not None
        await self.writer.keep(record, ("moved", {"message": "its files are stored, and it starts on any machine"}))
        await self.writer.caught_up(record)
        await self._let_go(record.disk.id)
        await self.adoption.remove(record.id, run.node_id)
        return Outcome(Event.WRITTEN)

    async def _let_go(self, image_id: str) -> None:
        with contextlib.suppress(ShoalError):  # it goes by its own ttl
            await self.changes.let_go([image_id], self.clock())
