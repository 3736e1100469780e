"""The actors' names in Ray, and the Ray options of each kind."""

from __future__ import annotations

from typing import Any

from shoal.model.ids import CONTROLLER, NAMESPACE
from shoal.model.spec import MIB, SlotShape

SLOT_PREFIX = "slot-"
NODE_PREFIX = "node-"
REGION_LABEL = "ray.io/availability-region"
ZONE_LABEL = "ray.io/availability-zone"
NODE_ID_LABEL = "ray.io/node-id"
MACHINE_LABEL = "shoal.io/machine"
"""Label of the Ray node of a machine that has joined: what the machine calls itself (`model/machine.py`)."""

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that Ray gives the head alone."""

CLUSTER_LABEL = "shoal.cluster"
NODE_LABEL = "shoal.node"
"""Labels of every container: its cluster and its node."""

IMAGE_REPOSITORY = "shoal-images/"
"""What the engine's names of the cluster's own images begin with: sandboxes get them by id, never by these."""


def image_reference(cluster: str, image_id: str = "") -> str:
    """The engine's name of an image of the cluster; without an id, what all of them begin with."""
    return f"{IMAGE_REPOSITORY}{cluster}:{image_id}"


DIGEST = "sha256:"
_COPY = "copy-"


def copy_name(digest: str) -> str:
    """What stands for an image's id in its name on a node that has fetched it."""
    return _COPY + digest.removeprefix(DIGEST)


def copied(name: str) -> str | None:
    """The inverse; None for what is no such name."""
    return DIGEST + name.removeprefix(_COPY) if name.startswith(_COPY) else None


def node_actor_name(node_id: str) -> str:
    return f"{NODE_PREFIX}{node_id}"


def network_owner(cluster: str, machine: str | None) -> str:
    """Whose a bridge is. `machine`: what one that has joined calls itself, None for the head: of two nodes on one
    machine, each has a bridge of its own."""
    return cluster if machine is None else f"{cluster} {machine}"


# All of them with `enable_task_events=False`: Ray would report and keep each call of theirs, a dozen for each sandbox.
# What there is to know of them is in Shoal's own metrics and traces.


def controller_options() -> dict[str, Any]:
    """Restarted without limit, on the head node; takes no CPU from others."""
    return {
        "name": CONTROLLER,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "resources": {HEAD_RESOURCE: 0.001},
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 20_000,  # waits and watches are long, cheap calls
        "enable_task_events": False,
        "get_if_exists": True,
    }


def node_options(node_id: str) -> dict[str, Any]:
    """Restarted without limit, only on its own machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {
        "name": node_actor_name(node_id),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 10_000,  # each sandbox watches its container through one call
        "enable_task_events": False,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        "get_if_exists": True,
    }


def slot_options(slot_id: str, shape: SlotShape, node_id: str | None, labels: dict[str, str]) -> dict[str, Any]:
    """Placed on `node_id`, or by Ray on a node with such labels where its resources are free. Ray never restarts it, as
    it might choose another machine: the controller makes a new slot on the machine of the container."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {
        "name": slot_id,
        "namespace": NAMESPACE,
        "lifetime": "detached",  # outlives the controller that made it
        "num_cpus": shape.cpu,
        "memory": shape.memory * MIB,
        "num_gpus": shape.gpu,
        "max_restarts": 0,
        "max_concurrency": 64,
        "enable_task_events": False,
    }
    if node_id is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    elif labels:
        options["label_selector"] = labels
    return options
