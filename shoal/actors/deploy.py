"""Creates the cluster's actors in a running Ray, and removes them.

The caller has connected to Ray (`ray.init`). Both calls block.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError

from shoal.actors.controller.actor import ControllerActor
from shoal.actors.controller.store import Store
from shoal.actors.handles import find_actor, is_restarting
from shoal.actors.messages import Drained
from shoal.actors.names import NODE_PREFIX, SLOT_PREFIX, controller_options
from shoal.actors.objects import ObjectKeeper
from shoal.actors.volumes import VolumeKeeper
from shoal.model.errors import Unavailable
from shoal.model.ids import BUILDER, CONTROLLER, NAMESPACE
from shoal.model.ray_errors import translate

_AGAIN_S = 0.5


def deploy(
    settings: dict[str, Any],
    cluster: str,
    secret: bytes,
    *,
    store: Callable[[dict[str, Any]], Store],
    objects: Callable[[dict[str, Any], str], ObjectKeeper],
    builder: Callable[[dict[str, Any]], Any] | None = None,
    volumes: Callable[[dict[str, Any]], VolumeKeeper] | None = None,
    timeout_s: float = 60.0,
) -> int:
    """Creates the controller and, through it, one node actor per machine; returns how many nodes answer. Idempotent.

    `settings`: `Settings.to_dict()`; `cluster`: the cluster's id; `secret`: 32 bytes, signs the relay's tokens;
    `store`: makes, from the settings, what the controller keeps its state in; `objects`: from the settings and the
    head's address, what keeps the object storage; `builder`: starts, from the settings, what builds images; `volumes`:
    makes, from the settings, what keeps volumes (functions that can be imported where it runs). Raises `Unavailable` if
    they do not answer within `timeout_s` seconds, or the error that kept them from starting.
    """
    actor_class: Any = ray.remote(ControllerActor)
    controller = actor_class.options(**controller_options()).remote(
        settings, cluster, secret, store, objects, builder, volumes
    )
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return cast("int", ray.get(controller.ready.remote(), timeout=max(0.0, deadline - time.monotonic())))
        except GetTimeoutError:
            raise Unavailable(f"the controller did not answer within {timeout_s:g} s; see Ray's logs") from None
        except RayError as error:
            failed = translate(error, "the controller (ready)")
            # With Redis, Ray itself starts the controller again that was lost with the head.
            if time.monotonic() >= deadline or not (isinstance(failed, Unavailable) and is_restarting(failed)):
                raise failed from None
            time.sleep(_AGAIN_S)


def drain(*, timeout_s: float = 90.0) -> Drained:
    """Ends all sandboxes and all of Shoal's actors; every node undoes what it did to its machine. The result names the
    nodes that failed to.

    An actor that does not answer in time is killed too. The caller then sweeps what its node left.
    """
    drained = Drained(0)
    controller = find_actor(CONTROLLER)
    try:
        if controller is not None:
            drained = cast("Drained", ray.get(controller.drain.remote(), timeout=timeout_s))
    except RayError as error:
        raise translate(error, "the controller (drain)") from None
    finally:
        for entry in ray.util.list_named_actors(all_namespaces=True):
            ours = entry["name"] in (CONTROLLER, BUILDER) or entry["name"].startswith((NODE_PREFIX, SLOT_PREFIX))
            actor = find_actor(entry["name"]) if entry["namespace"] == NAMESPACE and ours else None
            if actor is not None:
                ray.kill(actor, no_restart=True)
    return drained
