"""What is on a node and the controller does not know, so that the sweep removes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from shoal.actors.handles import call, find_actor
from shoal.model.ids import CONTROLLER

_ANSWER_S = 10.0

# The table of verbs is imported in the calls: slots import this package, and do without it.


async def sandboxes(sandbox_ids: Sequence[str], node_id: str) -> Sequence[str]:
    """Those that are not alive on the node."""
    from shoal.model import verbs

    return await _ask_which(verbs.orphans.name, sandbox_ids, node_id)


async def images(image_ids: Sequence[str]) -> Sequence[str]:
    """Those that no image has."""
    from shoal.model import verbs

    return await _ask_which(verbs.unknown_images.name, image_ids)


async def _ask_which(verb: str, *arguments: Any) -> Sequence[str]:
    """Those of some ids that the controller names; none while there is nobody to ask."""
    controller = await asyncio.to_thread(find_actor, CONTROLLER)
    if controller is None:
        return ()
    found: list[str] = await call(controller, "call", verb, arguments, timeout_s=_ANSWER_S)
    return found
