"""The API's replicas: Serve starts, checks, restarts and rolls them; each answers on unix sockets of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from ray import serve
from ray.serve.schema import LoggingConfig

from shoal.actors.core_files import leave_no_core_file
from shoal.actors.garbage import spare_what_stays
from shoal.cluster.serving.replica_server import GRACE_S, UNKNOWN_S, Apps, ReplicaServer
from shoal.model import tracing
from shoal.model.errors import Unavailable
from shoal.model.serving_paths import ServingPaths
from shoal.model.settings import Settings
from shoal.model.telemetry import begin_traces
from shoal.transport.ray import RayTransport

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "shoal"

_HEAD = "node:__internal_head__"
_MARGIN_S = 10.0


class Replica:
    """Built in its process by Serve. `settings`: `Settings.to_dict()`; `cluster`: the cluster's id."""

    _server: ReplicaServer | None = None

    async def __init__(self, settings: dict[str, Any], cluster: str) -> None:  # type: ignore[misc]  # Serve awaits it
        leave_no_core_file()
        self._settings = Settings.from_dict(settings)
        directory = ServingPaths(self._settings.run_dir, cluster).replicas
        server = ReplicaServer(directory, self._make)
        await asyncio.to_thread(server.start)
        self._server = server

    async def _make(self) -> Apps:
        from shoal.cluster.api.app import make_app
        from shoal.cluster.api.request.log_lines import write_lines
        from shoal.cluster.api.tunnels.internal import make_internal_app

        settings = self._settings.telemetry
        write_lines(log_format=settings.log_format)
        begin_traces(settings, "api")
        app = make_app(await RayTransport.open(), self._settings)
        made = app, make_internal_app(app)
        spare_what_stays()
        return made

    async def check_health(self) -> None:
        """Serve replaces a replica whose servers have ended.

        Whether the controller answers is no reason to: `/v1/ready` tells.
        """
        if self._server is None or not await self._server.answers():
            raise Unavailable("the replica's HTTP servers have ended")

    def __del__(self) -> None:
        """Serve calls it before it ends a replica, and waits until it returns."""
        if self._server is not None:
            self._server.stop()
        tracing.stop()


def application(settings: dict[str, Any], cluster: str) -> Application:
    """What Serve is to run, with `settings` (`Settings.to_dict()`)."""
    carried = Settings.from_dict(settings).to_dict_for_others()
    telemetry = carried["telemetry"]
    deployment: Any = serve.deployment(
        Replica,
        name="api",
        num_replicas=settings["api"]["replicas"],
        # The gateway is on the head. CPUs are for sandboxes.
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD: 0.0001}},
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=UNKNOWN_S + GRACE_S + _MARGIN_S,
        health_check_period_s=2,
        health_check_timeout_s=10,
        logging_config=LoggingConfig(
            enable_access_log=False, encoding="JSON" if telemetry["log_format"] == "json" else "TEXT"
        ),
    )
    return cast("Application", deployment.bind(carried, cluster))
