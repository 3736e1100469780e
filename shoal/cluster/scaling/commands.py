"""`shoal cluster up` and `status`. `shoal cluster down` is `shoal down`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.cluster.local import up as local_cluster
from shoal.cluster.scaling.contract import CloudError
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.providers import open_regions
from shoal.cluster.scaling.reading import read_file
from shoal.cluster.scaling.spec import ClusterSpec
from shoal.model import cluster_file
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.report import Report, silent
from shoal.model.settings import Settings


def up(settings: Settings, path: Path, report: Report = silent) -> local_cluster.Up:
    """Starts the head here and scales from now on as the file says; for a cluster that runs, from its new version on.

    Nothing that runs is ended by a change. Raises `InvalidRequest` with the line of what is wrong in the file,
    `FailedPrecondition` where another cluster runs here.
    """
    cluster = read_file(path)
    files = ScalingFiles.below(settings.state_dir)
    before = files.read_cluster()
    running = cluster_file.read(settings.state_dir)
    if running is not None and before is None and local_cluster.health(running).good:
        raise FailedPrecondition(
            "a cluster that does not scale runs on this machine; run `shoal down` first", state="not_scaling"
        )
    if before is not None:
        _check_same(before, cluster)
    _check_provider(cluster, settings.state_dir)
    files.write_cluster(cluster)
    head = cluster.head
    try:
        return local_cluster.up(settings, local_cluster.UpOptions(head.address, head.port, head.region), report)
    except BaseException:
        if before is None:
            files.forget(description=True)
        raise


def status(state_dir: Path) -> dict[str, Any]:
    """The plan as the scaler wrote it last; `FailedPrecondition` where none is scaling."""
    files = ScalingFiles.below(state_dir)
    if files.read_cluster() is None:
        raise FailedPrecondition(f"no cluster scales from {state_dir}; run `shoal cluster up FILE`", state="no_cluster")
    plan = files.read_plan()
    if plan is None:
        raise FailedPrecondition("the scaler has not decided anything yet; try again in a moment", state="starting")
    return plan


def _check_same(before: ClusterSpec, after: ClusterSpec) -> None:
    """What cannot be changed while machines run: by the name they are found, in the regions they are listed."""
    for field in ("name", "provider"):
        if getattr(before, field) != getattr(after, field):
            raise InvalidRequest(
                f"{field}: the cluster that runs has {getattr(before, field)!r}; run `shoal cluster down` first, "
                "or keep it",
                field=field,
            )
    gone = sorted(set(before.regions) - set(after.regions))
    if gone:
        raise InvalidRequest(
            f"regions.{gone[0]}: keep it, with max: 0 for its types, until its machines are gone: what is not listed "
            "is never ended",
            field=f"regions.{gone[0]}",
        )


def _check_provider(cluster: ClusterSpec, state_dir: Path) -> None:
    """Whether the provider can be used at all: each region answers, and the cluster's name is its own."""
    try:
        foreign = [each for region in open_regions(cluster, state_dir) for each in region.foreign_machines()]
    except CloudError as error:
        raise FailedPrecondition(f"{cluster.provider}: {error.kind}: {error}", state=error.kind) from None
    except ImportError as error:
        raise FailedPrecondition(
            f"{cluster.provider} needs a package that is missing: pip install 'shoal[{cluster.provider}]' ({error})",
            state="not_installed",
        ) from None
    if foreign:
        raise FailedPrecondition(
            f"name: machines of another cluster called {cluster.name} run, such as {foreign[0]}; choose another "
            "name, or end them if their head is gone",
            state="name_taken",
        )
