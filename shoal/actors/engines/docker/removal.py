"""Removes and stops the daemon's containers, whatever trees code inside has made. Blocks: called in threads.

The daemon itself descends into a container's layer with a descriptor for each level. Where that fails, or does not end,
the layer is emptied here, and the daemon is asked again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, NotFound
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from shoal.actors.engines.disks import disks
from shoal.actors.engines.docker.disk import put_away, trees
from shoal.actors.engines.docker.failures import explanation
from shoal.actors.engines.empty_tree import empty_tree
from shoal.model.errors import Unavailable

_log = logging.getLogger(__name__)

_REMOVE_S = 60.0
_KILL_S = 10.0


def remove_container(client: APIClient, name: str, key: str | None) -> None:
    """Kills and removes a container with its disk. Idempotent. Raises the SDK's errors, and `OSError`.

    `key`: the container's, by which its disk is found, if it is one of Shoal's."""
    disk = disks.find(key) if key else None
    if disk is not None:
        disks.release(disk)  # else the daemon would remove what is on it, one by one
    try:
        _ask(client, name)
    except NotFound:
        pass
    except (APIError, requests.RequestException) as error:
        # The daemon may name the whole path of what it could not remove.
        said = explanation(error) if isinstance(error, APIError) else str(error)
        _log.warning("the engine does not remove container %s, so its layer is emptied first: %s", name, said)
        with contextlib.suppress(NotFound):
            _empty(client, name)
            _ask(client, name)
    if disk is not None:
        disks.remove(disk)


def stop_container(client: APIClient, name: str, key: str) -> None:
    """Kills one that is kept, and puts its disk away. Idempotent. Raises the SDK's errors, and `Unavailable`."""
    found = _killed(client, name)
    if _runs(found):
        raise Unavailable(f"container {key} does not end within {_KILL_S:g} s of being killed; try again")
    put_away(key, found)


def _ask(client: APIClient, name: str) -> None:
    again = Retrying(
        retry=retry_if_exception(_passes),
        wait=wait_exponential(0.02, max=1.0),
        stop=stop_after_delay(_REMOVE_S),
        reraise=True,
    )
    # `v`: also remove the anonymous volumes that its image declares.
    again(client.remove_container, name, v=True, force=True)


def _passes(error: BaseException) -> bool:
    """Whether a removal may succeed later: somebody else is removing it too, or the kernel still holds its mounts."""
    return isinstance(error, APIError) and (error.status_code == 409 or "busy" in explanation(error).lower())


def _empty(client: APIClient, name: str) -> None:
    found = _killed(client, name)
    if not _runs(found):
        for tree in trees(found):
            with contextlib.suppress(FileNotFoundError):
                empty_tree(tree)


def _killed(client: APIClient, name: str) -> dict[str, Any]:
    """The daemon's description of the container once it has ended, or after `_KILL_S`."""
    found: dict[str, Any] = client.inspect_container(name)
    deadline = time.monotonic() + _KILL_S
    while _runs(found) and time.monotonic() < deadline:
        with contextlib.suppress(APIError):  # it ended meanwhile
            client.kill(name)
        time.sleep(0.05)
        found = client.inspect_container(name)
    return found


def _runs(found: dict[str, Any]) -> bool:
    return bool(found["State"].get("Running"))
