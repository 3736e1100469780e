"""Images of sandboxes and of registries."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Scope
from shoal.model.images import ImageListing, ImagePage, ImageRecord
from shoal.model.info import SandboxInfo
from shoal.model.verbs.verb import BASE_S, SNAPSHOT_S, Made, Retry, verb


@verb(
    Scope.RUN,
    "POST /v1/sandboxes/{sandbox_id}/snapshot",
    audit="image.snapshot",
    retry=Retry.UNANSWERED,
    takes=SNAPSHOT_S,
)
def snapshot_filesystem(
    sandbox_id: str,
    name: str | None = None,
    ttl: float | None = None,
    key: str | None = None,
    path: str | None = None,
) -> ImageRecord:
    """An image of a sandbox's files, as they are at one moment in which its processes are frozen; at once usable.
    `name`: `name:tag`, which moves to it from another image; `ttl`: seconds after which it goes, None: only once it has
    no name and is not used for long; `key`: the same key gives the same image. `path`: of this directory alone, which
    is the image's root; without what is mounted below it, and of a sandbox that runs.

    Raises `InvalidRequest`, `PathNotFound`, `SandboxEnded`, `FailedPrecondition` before it runs, `QuotaExceeded`;
    nothing is left then.
    """


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/images", audit="image.mount", takes=BASE_S)
def mount_image(sandbox_id: str, image: str, path: str) -> SandboxInfo:
    """Has a sandbox that runs see the files of an image at a path; the directory is made where it is missing. What the
    sandbox writes there is its own, counts for its disk, goes with it or with `unmount_image`, and is in no snapshot of
    its filesystem. Where it is persistent, the image is mounted again at each start. The same again does nothing.

    Raises `InvalidRequest` (field `path` or `image`), `AlreadyExists` (field `path`) where something is mounted there,
    below or above, `ImageNotFound`, `SandboxEnded`, `QuotaExceeded`, `FailedPrecondition` where it does not run, or
    (state `no_mounts`) its runtime or engine cannot; nothing is mounted then.
    """


@verb(Scope.RUN, "DELETE /v1/sandboxes/{sandbox_id}/images", audit="image.unmount", takes=60.0)
def unmount_image(sandbox_id: str, path: str) -> SandboxInfo:
    """Takes an image away that was mounted so, with what was written there. Where none is, nothing happens.
    `SandboxEnded`, `FailedPrecondition` where it does not run."""


@verb(
    Scope.RUN,
    "POST /v1/sandboxes/{sandbox_id}/checkpoint",
    audit="image.checkpoint",
    retry=Retry.UNANSWERED,
    takes=SNAPSHOT_S,
)
def checkpoint(sandbox_id: str, ttl: float | None = None, key: str | None = None) -> ImageRecord:
    """An image of a sandbox's files and memory, of one moment: sandboxes that are created from it, with the runtime
    `runsc`, go on where it was. It goes on itself. The image is on the sandbox's machine only; `ttl`, `key`: as for
    `snapshot_filesystem`.

    Raises `InvalidRequest`, `SandboxEnded`, `QuotaExceeded`, `FailedPrecondition` before it runs, and (state
    `no_memory`) for another runtime.
    """


@verb(
    Scope.RUN,
    "POST /v1/sandboxes/{sandbox_id}/fork",
    many="sandboxes",
    audit="sandbox.fork",
    retry=Retry.UNANSWERED,
    takes="deadline",
)
def fork(sandbox_id: str, count: int, deadline: float, key: str, memory: bool = False) -> list[Made]:
    """Up to 1,000 sandboxes of the same spec but for its name, running, each with the files that this one has now: all,
    or none. They have the idempotency keys `<key>:<number>`, from 0; `deadline`: seconds for all of it; `memory`: each
    goes on with its processes and their memory, too, the own command as one of them.

    Raises what `snapshot_filesystem`, with `memory` `checkpoint`, and `create` do.
    """


@verb(Scope.READ, "GET /v1/images")
def list_images(listing: ImageListing) -> ImagePage:
    """Images, newest first; `EnvironmentNotFound`."""


@verb(Scope.READ, "GET /v1/images/{image}")
def get_image(image: str, environment: str | None = None) -> ImageRecord:
    """One, by its id, or by its name in an environment; `ImageNotFound`."""


@verb(Scope.RUN, "DELETE /v1/images/{image}", audit="image.delete")
def delete_image(image: str, environment: str | None = None, when_unused: bool = False) -> ImageRecord:
    """Deletes one, by its id or name. `FailedPrecondition` (state `in_use`, with `in_use`) while sandboxes or pools
    need it; `when_unused`: nobody can use it from now on, and it goes once they do not need it. `ImageNotFound`."""


@verb(Scope.RUN, "PUT /v1/images/{image}/name", audit="image.name")
def name_image(image: str, environment: str | None, name: str | None) -> ImageRecord:
    """Gives one another name, which moves to it from another image of its environment; None: it has no name any more.
    `InvalidRequest`, `ImageNotFound`."""


@verb(Scope.RUN, "POST /v1/images/collect", many="images", audit="image.collect")
def collect_images(environment: str, unused_for: float, dry_run: bool) -> list[ImageRecord]:
    """Deletes the images of an environment that have no name, that nothing needs, and from which no sandbox was created
    for `unused_for` seconds. Returns them; `dry_run`: and deletes none."""
