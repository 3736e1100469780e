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
