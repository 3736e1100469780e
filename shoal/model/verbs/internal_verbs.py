"""What the cluster's own parts ask: replicas of the API, nodes, builds, scaling."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.model.access import AuditEntry, StoredToken
from shoal.model.builds import BaseImage
from shoal.model.capacity import Capacity, Demand
from shoal.model.grants import Grant
from shoal.model.images import ImageRecord
from shoal.model.info import NodeInfo
from shoal.model.metrics import Series
from shoal.model.verbs.verb import BASE_S, SNAPSHOT_S, Retry, verb

# Asked by the API's replicas and by nodes themselves, on behalf of no caller


@verb(None)
def stored_token(token_id: str) -> StoredToken | None:
    """For replicas: the token of that id with its digest, or None."""


@verb(None)
def token_ids() -> list[str]:
    """For replicas: the ids of all tokens, in any order."""


@verb(None)
def report(audit: Sequence[AuditEntry], counters: Mapping[Series, float], used: Mapping[str, float]) -> None:
    """For replicas: what one did since its last report. Entries for the audit log, amounts to add to the cluster's
    metrics, and when which token was last used."""


@verb(None)
def tunnel_secret() -> bytes:
    """For replicas: the secret that connect tokens of tunnels are signed with. 32 bytes, derived from the cluster's."""


@verb(None)
def session_secret() -> bytes:
    """For replicas: the secret that sessions of browsers are signed with. 32 bytes, derived from the cluster's."""


@verb(None, retry=Retry.NEVER)
def redeem_sign_in_code(code: str) -> str:
    """For replicas: the id of the token that a code signs in with, this once; `Unauthenticated`."""


@verb(None)
def wake(sandbox_id: str, deadline: float) -> Grant:
    """For replicas: access to a sandbox that a request came for, which is started where it is stopped and has
    `autostart`. Errors as of `start` and `grant`."""


@verb(None)
def orphans(sandbox_ids: Sequence[str], node_id: str) -> list[str]:
    """For nodes: those of `sandbox_ids` that do not live there."""


@verb(None)
def find_image(environment: str, cache_key: str) -> ImageRecord | None:
    """For builds: the image of an environment with that cache key, which counts as used now, or None."""


@verb(None, takes=SNAPSHOT_S)
def save_build(
    sandbox_id: str,
    cache_key: str,
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
    ttl: float | None = None,
    replace: bool = False,
) -> ImageRecord:
    """For builds: an image of kind `build` of a sandbox's files, with the defaults in `config` (as in
    `ImageRecord.config`; None: those of the image below). One with that cache key that there is: that one;
    `replace`: the key moves to the new one."""


@verb(None)
def unknown_images(image_ids: Sequence[str]) -> list[str]:
    """For nodes: those of `image_ids` that no image has."""


@verb(None, takes=BASE_S)
def base_image(reference: str, environment: str, pull: bool) -> BaseImage | None:
    """For builds: what a spec's image is, pulled where no node has it (not `pull`: None then). `ImageNotFound`."""


@verb(None, takes=60.0)
def admit_node(machine: str, clock: float) -> NodeInfo:
    """For a machine that joins: returns once its node takes part. Raises what keeps it from that: the head does not
    reach it (`FailedPrecondition`, state `unreachable`), its clock is far off (state `clock`), or its node actor's
    error. `clock`: its own, in unix seconds."""


# Asked by scaling


@verb(None)
def report_capacity(capacity: Capacity) -> None:
    """For scaling: what it can launch, what it is launching, and where there is no capacity. Each report replaces the
    one before."""


@verb(None)
def demand() -> Demand:
    """For scaling: which sandboxes wait for room, and what each node does."""
