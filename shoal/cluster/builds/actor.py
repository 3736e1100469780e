"""The builder actor, and how it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from shoal.actors.handles import Carrying, find_actor
from shoal.actors.names import HEAD_RESOURCE
from shoal.client.cluster import Client
from shoal.cluster.builds.builder import Builder
from shoal.cluster.builds.files import FileStore
from shoal.model import telemetry
from shoal.model.access import Caller
from shoal.model.builds import BuildInfo, BuildLog, BuildOptions
from shoal.model.errors import Unavailable
from shoal.model.ids import BUILDER, CONTROLLER, NAMESPACE
from shoal.model.recipe import Recipe
from shoal.model.settings import Settings
from shoal.transport.ray import RayTransport


def builder_options() -> dict[str, Any]:
    """Restarted without limit, on the head node."""
    return {
        "name": BUILDER,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "resources": {HEAD_RESOURCE: 0.001},
        "max_restarts": -1,
        "max_concurrency": 1000,
        "get_if_exists": True,
    }


def start_builder(settings: dict[str, Any]) -> Any:
    """The builder, started where it does not run. Blocks for some milliseconds, and does not wait for its start."""
    actor: Any = ray.remote(BuilderActor).options(**builder_options())
    return actor.remote(settings)


class BuilderActor(Carrying):
    """Made by `start_builder`; the controller calls it for its callers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        checked = Settings.from_dict(settings)
        telemetry.begin(checked.telemetry, "builder")
        self._state_dir = Path(checked.state_dir)
        self._builder: Builder | None = None

    async def build(self, recipe: Recipe, environment: str, options: BuildOptions, by: Caller) -> BuildInfo:
        return await self._open().build(recipe, environment, options, by)

    async def builds(self, by: Caller) -> list[BuildInfo]:
        return self._open().builds(by)

    async def info(self, build_id: str, by: Caller) -> BuildInfo:
        return self._open().info(build_id, by)

    async def log(self, build_id: str, offset: int, wait: float, by: Caller) -> BuildLog:
        return await self._open().log(build_id, offset, wait, by)

    async def put_files(self, digest: str, size: int, offset: int, data: bytes) -> None:
        await self._open().put_files(digest, size, offset, data)

    def _open(self) -> Builder:
        if self._builder is None:
            controller = find_actor(CONTROLLER)
            if controller is None:
                raise Unavailable("there is no controller: the cluster is being shut down")
            client = Client(RayTransport(controller))
            self._builder = Builder(client, FileStore(self._state_dir / "builds"))
        return self._builder
