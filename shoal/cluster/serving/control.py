"""Starting, rolling and looking at the API through Serve, from a process that is connected to Ray. All calls block."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from shoal.cluster.serving.deployment import APPLICATION, application
from shoal.model.errors import Unavailable

_KEEP_ALIVE_S = 75


def start(settings: dict[str, Any], host: str, port: int) -> None:
    """Makes sure that Serve runs and deploys the API; replicas that are there are replaced one after the other, with what they do
    taken to its end. Returns once they take requests. `host`: what replicas listen on, `port`: HAProxy's."""
    serve.start(ProxyLocation.HeadOnly, HTTPOptions(host=host, port=port, keep_alive_timeout_s=_KEEP_ALIVE_S))
    try:
        serve.run(application(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise Unavailable(f"the API does not start: {error}; see the logs of Serve in Ray's session") from None


def stop() -> None:
    """Ends the API and all of Serve. Nothing happens where it does not run."""
    serve.shutdown()  # type: ignore[no-untyped-call]
