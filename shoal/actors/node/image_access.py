"""What a node asks and tells the controller about the object storage."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.actors.handles import call, find_actor
from shoal.actors.objects import ObjectAccess
from shoal.model.errors import Unavailable
from shoal.model.ids import CONTROLLER

_START_S = 60.0
"""The controller may have to start the storage's server first."""
_STORE_S = 600.0
_TELL_S = 10.0


async def object_access() -> ObjectAccess:
    """How to reach the object storage. `Unavailable`."""
    access: ObjectAccess = await _ask("object_access", timeout_s=_START_S)
    return access


async def ensure_stored(digest: str) -> None:
    """Returns once an image is in the object storage. `ImageNotFound`, `Unavailable`."""
    await _ask("ensure_stored", digest, timeout_s=_STORE_S)


async def tell_damaged(digest: str) -> None:
    """An image is not stored as it was."""
    await _ask("image_damaged", digest, timeout_s=_TELL_S)


async def _ask(method: str, *arguments: str, timeout_s: float) -> Any:
    controller = await asyncio.to_thread(find_actor, CONTROLLER)
    if controller is None:
        raise Unavailable("there is no controller to ask for the object storage")
    return await call(controller, method, *arguments, timeout_s=timeout_s)
