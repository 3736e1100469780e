"""Starting, rolling and looking at the API through Serve, from a process that is connected to Ray. All calls block."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import HTTPOptions, ProxyLocation

from shoal.cluster.serving.deployment import APPLICATION, application
from shoal.model.errors import Unavailable

_KEEP_ALIVE_S = 75


def start(settings: dict[str, Any], host: str, port: int) -> None:
    """Makes sure that Serve runs and deploys the API; replicas that are there are replaced one after the other, with what they do
    taken to its end. Returns once they take requests. `host`: what replicas listen on, `port`: HAProxy's."""
    try:
        _start_serve(host, port)
    except RayActorError:
        # Serve's controller replaces a HAProxy that is slow to come, while this waits for that very one. Then Serve runs, and is found.
        _start_serve(host, port)
    try:
        serve.run(application(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise Unavailable(f"the API does not start: {error}; see the logs of Serve in Ray's session") from None


def _start_serve(host: str, port: int) -> None:
    serve.start(ProxyLocation.HeadOnly, HTTPOptions(host=host, port=port, keep_alive_timeout_s=_KEEP_ALIVE_S))


def stop() -> None:
    """Ends the API and all of Serve. Nothing happens where it does not run."""
    serve.shutdown()  # type: ignore[no-untyped-call]
