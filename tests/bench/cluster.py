"""A cluster for the bench: as `shoal up` makes one, with room for all the sandboxes that are measured; and the Docker
engine of the peers, which may be the cluster's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from docker import APIClient

from shoal.cluster.local import engines
from shoal.cluster.local import up as local_cluster
from shoal.cluster.local.engines.contract import LocalEngine
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition
from shoal.model.report import Report
from shoal.model.settings import Settings
from tests.bench.creates import RATE_CREATES
from tests.bench.shoalpy import REQUEST


@dataclass(frozen=True, slots=True)
class Bench:
    """`file`: the cluster's; `engine`: its engine; `docker`: the peers', which may be the same; `image`: which both
    have."""

    file: ClusterFile
    engine: LocalEngine
    docker: LocalEngine
    image: str

    def containers(self, subject: str) -> set[str]:
        """Those that a subject may have, by any name that is each one's own."""
        if subject == "shoal" and self.engine.kind != "docker":
            return set(self.engine.containers({}))
        client = APIClient(base_url=self.docker.address)
        try:
            return {container["Id"] for container in client.containers()}
        finally:
            client.close()


@contextmanager
def cluster(report: Report, engine: str) -> Iterator[Bench]:
    """Up within the block. It has the state directory of `shoal up`, so the base image is there if it was ever made."""
    # Fewer idle processes of Ray's than an over-commit by far would bring, and still twice the sandboxes of any
    # measure.
    cores = max(2 * RATE_CREATES * REQUEST[0], os.cpu_count() or 1)
    overrides: dict[str, Any] = {"node": {"cpu_overcommit": cores / (os.cpu_count() or 1)}, "engine": engine}
    settings = Settings(**overrides)
    if cluster_file.read(settings.state_dir) is not None:
        raise FailedPrecondition(
            "a cluster is up on this machine, and what runs there would disturb the figures; run `shoal down` first"
        )
    try:
        file = local_cluster.up(settings, report=report).cluster
        ours = engines.at(file.engine_address, settings)
        image = str(file.settings["sandbox"]["image"])
        with _docker(ours, settings, image, report) as docker:
            yield Bench(file, ours, docker, image)
    finally:
        local_cluster.down(settings, report=report)


@contextmanager
def _docker(ours: LocalEngine, settings: Settings, image: str, report: Report) -> Iterator[LocalEngine]:
    """The cluster's Docker engine, or one beside the cluster."""
    if ours.kind == "docker":
        yield ours
        return
    state_dir, run_dir = settings.state_dir / "bench", settings.run_dir / "bench"
    own = {"engine": "docker", "engine_address": f"unix://{run_dir}/engine.sock"}
    apart = settings.model_copy(update={"state_dir": state_dir, "run_dir": run_dir, **own})
    found = engines.choose(apart).kind.provide(apart, report)
    try:
        found.ensure_image(image, settings.state_dir / "cache", report)
        yield found
    finally:
        found.stop(keep=False)
