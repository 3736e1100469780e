"""The API's replicas: Serve's processes, each with the application and a transport of its own to this cluster."""

from __future__ import annotations

import functools
import resource
from typing import TYPE_CHECKING, Any, cast

import ray
import uvicorn
from ray import serve
from ray.serve._private import replica as serve_replica
from ray.serve.schema import LoggingConfig

from shoal.cluster.serving.haproxy_config import address
from shoal.cluster.serving.place import DRAIN_S, GRACE_S
from shoal.cluster.serving.servers import server_options
from shoal.model.settings import Settings
from shoal.transport.ray import RayTransport

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

APPLICATION = "shoal"

_HEAD = "node:__internal_head__"


class Replica:
    """Built in its process by Serve: `__init__`, then `__serve_build_asgi_app__`. `settings`: `Settings.to_dict()`."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        prepare_process()
        self._settings = Settings.from_dict(settings)
        self._transport = await RayTransport.open()

    def __serve_build_asgi_app__(self) -> FastAPI:
        from shoal.cluster.api.app import make_app
        from shoal.cluster.api.request.log_lines import write_lines

        write_lines()
        return make_app(self._transport, self._settings)

    async def check_health(self) -> None:
        """A replica that runs this is well. Whether the controller answers is no reason to replace replicas: `/v1/ready` tells that."""


def application(settings: dict[str, Any], replica: type[Replica] = Replica) -> Application:
    """What Serve is to run, with `settings` (`Settings.to_dict()`)."""
    deployment: Any = serve.deployment(
        serve.ingress()(replica),
        name="api",
        num_replicas=settings["api"]["replicas"],
        # The head is where HAProxy is. CPUs are for sandboxes.
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD: 0.0001}},
        # What a replica may do at once is bounded by what may connect to it.
        max_ongoing_requests=100_000,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=DRAIN_S + GRACE_S,
        health_check_period_s=2,
        health_check_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return cast("Application", deployment.bind(Settings.from_dict(settings).to_dict_for_others()))


def prepare_process() -> None:
    """What Serve offers no setting for, before it starts this process's servers. Tests hold each."""
    # A connection is a descriptor, and so is the one to the relay that it may need.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    uvicorn.Config = functools.partial(uvicorn.Config, **server_options(host))  # type: ignore[misc, assignment]
    # Between replicas Serve listens on every address. It asks for Ray's token there, but strangers need not get that far.
    listen = serve_replica.add_port_to_grpc_server  # type: ignore[attr-defined]
    serve_replica.add_port_to_grpc_server = lambda server, _: listen(server, address(host, 0))  # type: ignore[attr-defined, no-untyped-call]
