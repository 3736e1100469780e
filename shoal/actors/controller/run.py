"""A sandbox that lives, in the hands of the supervisor, and what its activities come to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.actors.controller.endings import stopped
from shoal.actors.controller.phase import Event
from shoal.actors.controller.record import HeldImage, SandboxRecord, StopRequest
from shoal.actors.controller.record_writer import Happened, entered
from shoal.actors.controller.slot import Slot
from shoal.actors.messages import End, SandboxStarted
from shoal.model.access import AuditEntry
from shoal.model.errors import ShoalError
from shoal.model.states import Reason, State


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an activity came to: the event, and what it brought. `error`: what the create failed with; `disk`: the image
    that has its files."""

    event: Event
    slot: Slot | None = None
    started: SandboxStarted | None = None
    end: End | None = None
    error: ShoalError | None = None
    disk: HeldImage | None = None


@dataclass(slots=True)
class Run:
    """A living sandbox. `audit`: goes on record with its acceptance. `slot`: the one that is to start it or holds it;
    `node_id`: where one was that is lost or not trusted any more. `attempts`: starts in new slots. `end`: with which it
    will end. `early`: its start in a slot that was ready. `remains`: a container may be left of its start. `told`: the
    public state that was told last. `disk`: the image into which its files have been moved. `task`: carries out its
    activities, one after another.
    """

    record: SandboxRecord
    slot: Slot | None = None
    audit: Sequence[AuditEntry] = ()
    node_id: str | None = None
    attempts: int = 0
    end: End | None = None
    early: asyncio.Task[SandboxStarted] | None = None
    remains: bool = False
    told: State | None = None
    disk: HeldImage | None = None
    task: asyncio.Task[None] | None = None

    def is_on(self, node_id: str) -> bool:
        """Whether it runs on that node, or is about to."""
        started, slot = self.record.started, self.slot
        return (started is not None and started.node_id == node_id) or (slot is not None and slot.node_id == node_id)

    def news(self) -> list[Happened]:
        """The event to tell, if the public state is another than the one told last."""
        if self.record.state is self.told:
            return []
        self.told = self.record.state
        return [entered(self.record)]


def asked_for(request: StopRequest) -> Outcome:
    """A persistent sandbox is to stop, or to be suspended."""
    event = Event.SUSPEND_REQUESTED if request.reason is Reason.SUSPENDED else Event.STOP_REQUESTED
    return Outcome(event, end=stopped(request))
