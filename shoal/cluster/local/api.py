"""The HTTP API of a one-machine cluster: chosen a place for, started last, looked at, mended, rolled.

Replicas are Serve's and the gateway is the node actor's. Whether the API answers is asked as a client asks.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from shoal.client import config_file
from shoal.cluster.local import actors as local_actors
from shoal.cluster.local import ray as local_ray
from shoal.cluster.local import state as local_state
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import InvalidRequest, ShoalError, Unavailable
from shoal.model.hosts import check_open
from shoal.model.serving_paths import ServingPaths
from shoal.model.settings import ApiSettings, Settings
from shoal.transport.http_server import normal_url

_READY_S = 60.0
_LOOK_S = 2.0

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,180}}\Z)({_LABEL}\.)*(?=[a-z]){_LABEL}")
"""Below it there is room for a port and a sandbox, and an address is none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a cluster's API is to be."""

    settings: ApiSettings
    port: int

    @property
    def listens(self) -> str:
        """`host:port`."""
        return _address(self.settings.host, self.port)

    @property
    def url(self) -> str:
        """How clients reach it: what the operator says, or what this machine knows."""
        if self.settings.url is not None:
            return self.settings.url
        scheme = "https" if self.settings.tls_cert is not None else "http"
        return f"{scheme}://{_address(_reachable(self.settings.host), self.port)}"


def plan(settings: Settings, cluster: str) -> Plan | None:
    """None where the API is not wanted. `InvalidRequest` with the remedy where it cannot be as the settings say."""
    api = settings.api
    if not api.enabled:
        return None
    _check(api)
    config_file.read()  # what is wrong with it is better said before all is started
    ServingPaths(settings.run_dir, cluster).check()
    return Plan(api, _choose_port(api))


def start(cluster: ClusterFile, *, roll: bool = False) -> None:
    """Deploys the API, or rolls the one that is there: replica by replica, and with `roll` the gateway, each ending
    what it does.

    Returns once it takes requests, and its URL and a token stand in this user's configuration file.
    """
    if not cluster.api_listens:
        return
    _check(
        local_state.settings_of(cluster).api
    )  # files change: what does not fit must not take the place of what works
    url = normal_url(cluster.api_url)
    known = config_file.read().servers.get(url, config_file.ServerEntry()).token
    token = local_actors.serve(cluster, known, roll=roll)
    _await_ready(cluster)
    if token != known:
        config_file.put(url, token, default=False)


def forget(cluster: ClusterFile) -> None:
    """Takes the URL out of this user's configuration file."""
    if cluster.api_url:
        try:
            config_file.remove(normal_url(cluster.api_url))
        except ShoalError:
            pass  # a file that somebody broke must not keep the cluster from being taken away


def mend(cluster: ClusterFile) -> bool:
    """Makes sure that the API answers, and that this user has a token for it; whether there was anything to do.

    Serve heals itself where it can: it is given a little time.
    """
    if not cluster.api_listens:
        return False
    if answers(cluster):
        if normal_url(cluster.api_url) in config_file.read().servers:
            return False
        start(cluster)  # a `down` that was killed half-way has forgotten it
        return True
    try:
        _await_ready(cluster, within_s=10.0)
    except Unavailable:
        _check(local_state.settings_of(cluster).api)  # before what may only be slow is ended
        local_actors.unserve(cluster)
        start(cluster)
    return True


def replicas(cluster: ClusterFile) -> int:
    """How many replicas take requests, as the gateway sees it; 0 where it does not answer."""
    control = ServingPaths(Path(cluster.run_dir), cluster.cluster).control
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_LOOK_S)
            connection.connect(str(control))
            connection.sendall(b'{"op":"info"}\n')
            with connection.makefile("rb") as answer:
                return int(json.loads(answer.readline())["replicas"])
    except (OSError, ValueError, KeyError):
        return 0


def answers(cluster: ClusterFile, path: str = "/v1/health") -> bool:
    """Whether the API answers a GET of `path` with 200. Whoever listens there is told nothing."""
    settings = local_state.settings_of(cluster).api
    host, port = _reachable(settings.host), _port(cluster)
    connection: http.client.HTTPConnection
    if settings.tls_cert is not None:
        # Whether its certificate is good is for clients to judge, who know it by another name than this.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=_LOOK_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_LOOK_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _await_ready(cluster: ClusterFile, within_s: float = _READY_S) -> None:
    deadline = time.monotonic() + within_s
    while not answers(cluster, "/v1/ready"):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the API at {cluster.api_listens} did not answer within {within_s:g} s; see the logs of Serve in "
                f"{cluster.temp_dir}/session_latest/logs/serve and into gateway.log in the state directory's `node`"
            )
        time.sleep(0.05)


def _check(api: ApiSettings) -> None:
    if (api.tls_cert is None) != (api.tls_key is None):
        lacking = "tls_key" if api.tls_key is None else "tls_cert"
        raise InvalidRequest("api: tls_cert and tls_key belong together; set both or none", field=f"api.{lacking}")
    for field in ("tls_cert", "tls_key"):
        path = getattr(api, field)
        if path is not None and not os.access(path, os.R_OK):
            raise InvalidRequest(f"api.{field}: {path} is not there, or cannot be read", field=f"api.{field}")
    if api.tls_cert is not None and api.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(api.tls_cert, api.tls_key, password="")
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"api.tls_cert: {api.tls_cert} and {api.tls_key} are not a certificate (PEM) and its plain key: "
                f"{error}",
                field="api.tls_cert",
            ) from None
    if api.url is not None:
        try:
            normal_url(api.url)
        except InvalidRequest:
            raise InvalidRequest(
                "api.url: it is no URL of an API: scheme, host, and port and path where it has them; "
                "write https://shoal.example.com",
                field="api.url",
            ) from None
    if api.tunnel_domain is not None and not _DOMAIN.fullmatch(api.tunnel_domain):
        raise InvalidRequest(
            f"api.tunnel_domain: {api.tunnel_domain!r} is not a host name; use lower case, without scheme and port",
            field="api.tunnel_domain",
        )
    try:
        ipaddress.ip_address(api.host)
    except ValueError:
        raise InvalidRequest(f"api.host: {api.host!r} is no IP address; 0.0.0.0 means all", field="api.host") from None
    for proxy in api.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise InvalidRequest(
                f"api.trusted_proxies: {proxy!r} is neither an IP address nor a network such as 10.0.0.0/8",
                field="api.trusted_proxies",
            ) from None
    check_open(api)


def _choose_port(api: ApiSettings) -> int:
    try:
        free = local_ray.free_port(api.host)
    except InvalidRequest as error:
        raise InvalidRequest(f"api.host: {error.message.removeprefix('address: ')}", field="api.host") from None
    if api.port == 0:
        return free
    if not local_ray.is_free(api.host, api.port):
        remedy = "stop what listens there, or set SHOAL_API__PORT=0 for any free one"
        raise InvalidRequest(f"api.port: {api.port} on {api.host} is taken; {remedy}", field="api.port")
    return api.port


def _address(host: str, port: int) -> str:
    """As in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _port(cluster: ClusterFile) -> int:
    return int(cluster.api_listens.rpartition(":")[2])
