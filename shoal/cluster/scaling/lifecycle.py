"""What `shoal up` and `shoal down` do for a cluster that scales: its head is told apart, its machines end with it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from shoal.cluster.scaling import local
from shoal.cluster.scaling.contract import CloudError, MachineState
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.fleet import Fleet
from shoal.cluster.scaling.providers import open_regions
from shoal.cluster.scaling.ray_config import HEAD_ID, HEAD_TYPE
from shoal.model.errors import ShoalError, Unavailable

_END_S = 90.0
"""For so long machines that are ending are waited for. Clouds end them by themselves from then on."""

_LOOK_S = 1.0


def described(state_dir: Path) -> bool:
    """Whether the cluster of this state directory scales."""
    return ScalingFiles.below(state_dir).cluster.exists()


def head_environment() -> Mapping[str, str]:
    """By which Ray's autoscaler knows the head."""
    return {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_NODE_TYPE_NAME": HEAD_TYPE}


def end_machines(state_dir: Path, *, forget: bool) -> list[ShoalError]:
    """Ends every machine of the cluster, after Ray has ended, so that nothing launches more.

    Returns what went wrong; then the description stays, for another `shoal down`, as it does where not `forget`."""
    files = ScalingFiles.below(state_dir)
    cluster = files.read_cluster()
    if cluster is None:
        return []
    try:
        fleet = Fleet(open_regions(cluster, state_dir))
    except CloudError as error:
        return [Unavailable(f"{cluster.provider} cannot be asked for the cluster's machines: {error}")]
    errors: list[ShoalError] = []
    deadline, quiet = time.monotonic() + _END_S, 0
    # Twice: a request to launch that was under way when Ray ended shows up a moment later.
    while quiet < 2 and time.monotonic() < deadline:
        machines = fleet.refresh()
        errors = [
            Unavailable(f"{name}: {region.failed}; its machines still run: run `shoal down` again, or end those with "
                        f"the tag shoal-cluster={cluster.name} by hand")
            for name, region in fleet.state().regions.items()
            if region.failed is not None
        ]  # fmt: skip
        left = [machine.id for machine in machines if machine.state is not MachineState.TERMINATING]
        try:
            fleet.terminate(left)
        except CloudError as error:
            errors.append(Unavailable(f"machines could not be ended: {error}; run `shoal down` again"))
        quiet = 0 if left or errors else quiet + 1
        if quiet < 2:
            time.sleep(_LOOK_S)
    local.await_gone(state_dir, deadline)
    if not errors:
        files.forget(description=forget)
    return errors
