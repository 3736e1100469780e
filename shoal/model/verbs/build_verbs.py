"""Builds of images, and what goes to registries and comes from them."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Scope
from shoal.model.builds import BuildInfo, BuildLog, BuildOptions, PushedImage
from shoal.model.images import ImageRecord
from shoal.model.recipe import Recipe
from shoal.model.secrets import SecretUse
from shoal.model.verbs.verb import BASE_S, PUSH_S, Retry, verb


@verb(Scope.RUN, "POST /v1/images/{image}/push", audit="image.push", retry=Retry.UNANSWERED, takes=PUSH_S)
def push_image(image: str, environment: str | None, reference: str) -> PushedImage:
    """Sends an image of the cluster, by its id or name, to a registry (`registry/name:tag`), with the credentials that
    its node has for that. `ImageNotFound`, `InvalidRequest`, `FailedPrecondition`, `PermissionDenied` or `Unavailable`
    as the registry says."""


@verb(Scope.RUN, "POST /v1/images/pull", audit="image.pull", retry=Retry.UNANSWERED, takes=BASE_S)
def pull_image(reference: str, environment: str, secret: SecretUse) -> ImageRecord:
    """Pulls an image of a registry with credentials (`REGISTRY_USERNAME`, `REGISTRY_PASSWORD`), for one environment
    only. One that it has pulled before, by that reference: that one. `InvalidRequest`, `SecretNotFound`,
    `ImageNotFound`, `QuotaExceeded`, `Unavailable`."""


@verb(Scope.RUN, "POST /v1/images/builds", audit="image.build", takes=BASE_S)
def build_image(recipe: Recipe, environment: str, options: BuildOptions) -> BuildInfo:
    """Has an image built in an environment, or finds it built. One build for all who ask for the same at the same time.
    Where the state is `files`, send what is missing by `put_build_files` and ask again. Otherwise it goes on, whatever
    becomes of the caller: `build_log` follows it.

    Raises `InvalidRequest` (its field names the step), `ImageNotFound` (the base), `EnvironmentNotFound`.
    """


@verb(Scope.READ, "GET /v1/builds", many="builds")
def builds(environment: str | None) -> list[BuildInfo]:
    """The builds that run and the last ones that ended, newest first: of an environment, or (None) all that the caller
    may see. The builder keeps them in memory: none where it was started anew."""


@verb(Scope.READ, "GET /v1/images/builds/{build_id}")
def get_build(build_id: str) -> BuildInfo:
    """How a build stands; `BuildNotFound` also where the builder was started anew: ask for the build again."""


@verb(Scope.READ, "GET /v1/images/builds/{build_id}/log", takes="wait")
def build_log(build_id: str, offset: int, wait: float) -> BuildLog:
    """The log of a build from an offset on; waits up to `wait` seconds (20 at most) for more of it, or for its end.
    `BuildNotFound`."""


@verb(Scope.RUN)
def put_build_files(digest: str, size: int, offset: int, data: bytes) -> None:
    """A piece of the archive of files with that digest and size. The last piece is refused (`InvalidRequest`) where the
    whole has another digest."""
