"""A cluster for the bench: as `shoal up` makes one, with room for all the sandboxes that are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shoal.cluster.local import engines
from shoal.cluster.local import up as local_cluster
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition
from shoal.model.report import Report
from shoal.model.settings import Settings
from tests.bench.creates import RATE_CREATES
from tests.bench.shoalpy import REQUEST


@contextmanager
def cluster(report: Report) -> Iterator[ClusterFile]:
    """Up within the block. It has the state directory of `shoal up`, so the base image is there if it was ever made."""
    # Fewer idle processes of Ray's than an over-commit by far would bring, and still twice the sandboxes of any
    # measure.
    cores = max(2 * RATE_CREATES * REQUEST[0], os.cpu_count() or 1)
    overrides: dict[str, Any] = {"node": {"cpu_overcommit": cores / (os.cpu_count() or 1)}}
    settings = Settings(**overrides)
    if cluster_file.read(settings.state_dir) is not None:
        raise FailedPrecondition(
            "a cluster is up on this machine, and what runs there would disturb the figures; run `shoal down` first"
        )
    try:
        yield local_cluster.up(settings, report=report).cluster
    finally:
        local_cluster.down(settings, report=report)


@contextmanager
def docker_engine(where: ClusterFile, report: Report) -> Iterator[str]:
    """The address of a Docker engine for the peers: the cluster's, or one of its own beside it."""
    own = Settings.from_dict(where.settings)
    if own.engine == "docker":
        yield where.engine_address
        return
    state_dir, run_dir = own.state_dir / "bench", own.run_dir / "bench"
    address = {"engine": "docker", "engine_address": f"unix://{run_dir}/engine.sock"}
    settings = own.model_copy(update={"state_dir": state_dir, "run_dir": run_dir, **address})
    engine = engines.choose(settings).kind.provide(settings, report)
    try:
        engine.ensure_image(settings.sandbox.image, own.state_dir / "cache", report)
        yield engine.address
    finally:
        engine.stop(keep=False)
