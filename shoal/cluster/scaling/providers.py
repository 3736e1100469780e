"""Which providers there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal.cluster.scaling.contract import Region
from shoal.cluster.scaling.spec import AwsCluster, ClusterSpec, LocalCluster


def open_regions(cluster: ClusterSpec, state_dir: Path) -> Sequence[Region]:
    """The regions of a cluster whose head is this machine. Raises a `CloudError` where a provider cannot be used."""
    match cluster:
        case AwsCluster():
            from shoal.cluster.scaling.aws_regions import open_aws

            return open_aws(cluster, state_dir)
        case LocalCluster():
            from shoal.cluster.scaling.local import open_local

            return open_local(cluster, state_dir)
