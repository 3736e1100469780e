"""The regions of a cluster on AWS, opened on its head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from shoal.cluster.local import state as local_state
from shoal.cluster.scaling.aws import AwsRegion, regions
from shoal.cluster.scaling.aws_user_data import user_data
from shoal.cluster.scaling.contract import Misconfigured
from shoal.cluster.scaling.ray_config import cpus
from shoal.cluster.scaling.spec import AwsCluster, types_of
from shoal.model import cluster_file, join_token
from shoal.model.cluster_file import ClusterFile
from shoal.model.settings import Settings


def open_aws(cluster: AwsCluster, state_dir: Path) -> Sequence[AwsRegion]:
    """Raises a `CloudError` where there are no credentials, or the head does not run."""
    head = cluster_file.read(state_dir)
    script = partial(_user_data, cluster, head)
    return regions(
        cluster.name,
        local_state.identity(state_dir),
        cluster.regions,
        script,
        profile=cluster.profile,
        tags=cluster.tags,
    )


def _user_data(cluster: AwsCluster, head: ClusterFile | None, type_name: str) -> str:
    if head is None:
        raise Misconfigured("the head does not run: run `shoal cluster up`")
    kind = dict(types_of(cluster))[type_name]
    return user_data(
        type_name,
        kind,
        head=head.ray_address,
        join_token=join_token.of_cluster(head).text(),
        cpus=cpus(kind, Settings.from_dict(head.settings).node.cpu_overcommit),
        setup=cluster.setup,
        token_command=cluster.token_command,
        labels=kind.labels,
    )
