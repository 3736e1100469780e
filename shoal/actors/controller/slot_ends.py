"""Hears from a sandbox's slot how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from shoal.actors.controller.endings import vanished
from shoal.actors.controller.phase import Event
from shoal.actors.controller.run import Outcome, Run
from shoal.actors.handles import is_gone
from shoal.actors.messages import End
from shoal.model.errors import SandboxNotFound, Unavailable

_RETRY_S = 0.2


async def watched_end(call: Callable[..., Awaitable[Any]], run: Run) -> Outcome:
    """Waits for the end of a sandbox that runs. By that its slot is told of it, where it is yet to be."""
    record, started = run.record, run.record.started
    if started is not None and run.slot is not None and run.slot.must_hear_of(started):
        return await end_from_slot(call, run, "hold", record.launch_spec, started.started_at, started.key)
    return await end_from_slot(call, run, "ended")


async def end_from_slot(call: Callable[..., Awaitable[Any]], run: Run, method: str, *args: Any) -> Outcome:
    """The end that the slot tells. `method`: what is asked of it with the sandbox's id and `args`."""
    assert run.slot is not None
    while True:
        try:
            end: End = await call(run.slot.handle, method, run.record.id, *args)
            return Outcome(Event.HALTED if end.kept else Event.ENDED, end=end)
        except Unavailable as error:
            if is_gone(error):
                return Outcome(Event.SLOT_LOST)
            await asyncio.sleep(_RETRY_S)
        except SandboxNotFound:
            if run.record.spec.persistent:
                return Outcome(Event.UNHELD)
            return Outcome(Event.ENDED, end=vanished(run.record, "its actor does not hold it any more"))
