"""Where serving keeps its files, and what Ray must be told of it all before it starts: Serve's actors inherit the raylet's environment.

<run_dir>/<cluster>/h/haproxy        what Serve starts in HAProxy's place
<run_dir>/<cluster>/h/edge.json      where it listens and how (`Edge`)
<run_dir>/<cluster>/h/tls.pem        certificate and key in one, where the API has them
<run_dir>/<cluster>/h/<node>/        HAProxy's configuration, admin socket and messages, by Serve
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from shoal.cluster.local.ray import free_port, is_free
from shoal.cluster.serving.haproxy_config import Edge
from shoal.model.cluster_file import write_private
from shoal.model.errors import InvalidRequest, Unavailable
from shoal.model.settings import ApiSettings

DRAIN_S = 5.0
"""How long a replica that is to go still takes requests, until HAProxy sends it none: a HAProxy that no longer knows it was there 1 to 2 s
later, with all of two cores busy, and may have had to wait for the one before."""

GRACE_S = 60.0
"""How long what a replica is doing may then take to its end."""

_NODE_ID = 56
_WHILE_STARTING = ".4194304.tmp"

PORTS = 100
"""How many a cluster has between HAProxy and replicas. The first is Serve's own proxy's, which nobody is sent to."""

DRIVER = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"}
"""For a process that tells Serve what to do."""

_LOWEST_PORT = 20_000
_BLOCKS = 100


class Place:
    """The files of one cluster's serving. `files`: `Place(run_dir, cluster).files`."""

    def __init__(self, run_dir: Path, cluster: str) -> None:
        self.cluster = cluster
        self.files = run_dir / cluster / "h"

    @property
    def wrapper(self) -> Path:
        return self.files / "haproxy"

    @property
    def edge(self) -> Path:
        return self.files / "edge.json"

    @property
    def certificate(self) -> Path:
        return self.files / "tls.pem"

    def choose_ports(self, address: str) -> int:
        """The first of a block that no other cluster on this machine seems to have. `InvalidRequest` for an address of another machine."""
        free_port(address)  # on which none is free either, though for another reason
        for number in range(_BLOCKS):
            first = _LOWEST_PORT + (int(self.cluster, 16) + number) % _BLOCKS * PORTS
            if is_free(address, first) and is_free(address, first + 1):
                return first
        raise Unavailable(f"no ports are free between {_LOWEST_PORT} and {_LOWEST_PORT + _BLOCKS * PORTS} on {address}")

    def check(self) -> None:
        """`InvalidRequest` where HAProxy's socket would have too long a name."""
        if len(os.fsencode(self.files)) + 1 + _NODE_ID + len("/s") + len(_WHILE_STARTING) > 107:
            raise InvalidRequest(
                f"run_dir: {self.files} is too long for HAProxy's socket; use a shorter one such as /run/shoal",
                field="run_dir",
            )

    def prepare(self, settings: ApiSettings, port: int, node_host: str) -> None:
        """Writes what HAProxy starts from. Again: what changed counts from its next start."""
        self.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        tls = settings.tls_cert is not None and settings.tls_key is not None
        if tls:
            write_private(self.certificate, _combined(settings))
        edge = Edge(settings.host, port, settings.header_timeout, node_host, str(self.certificate) if tls else None)
        write_private(self.edge, edge.to_json().encode())
        root = Path(__file__).parents[3]
        words = (f"PYTHONPATH={root}", sys.executable, "-m", "shoal.cluster.serving.haproxy", str(self.edge))
        write_private(self.wrapper, f'#!/bin/sh\nexec env {shlex.join(words)} "$@"\n'.encode())
        self.wrapper.chmod(0o700)

    def environment(self, first_port: int) -> dict[str, str]:
        """For `ray start`. `first_port`: the first of `PORTS`."""
        return {
            **DRIVER,
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
            "RAY_SERVE_LOG_TO_STDERR": "0",
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self.wrapper),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self.files / "c"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self.files / "s"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self.files),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self.files / "state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self.files / "m"),
            # Replicas count for themselves; this would be a message to Python for each request.
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
            # A request's headers must fit into it; of what is longer HAProxy speaks in its own manner.
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
            # After a change HAProxy's old process goes on with the connections that it has: as long as a stream may reasonably last.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
            # There is one application only: a port used again leads to the same.
            "RAY_SERVE_PORT_QUARANTINE_S": "10",
            # A followed stream may be silent for as long as it likes; a replica that died is noticed by other means.
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "86400",
            # A HAProxy that died is noticed at the third look.
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_port + 1),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_port + PORTS),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(first_port),
        }


def _combined(settings: ApiSettings) -> bytes:
    parts = []
    for field in ("tls_cert", "tls_key"):
        path = getattr(settings, field)
        try:
            parts.append(path.read_bytes())
        except OSError as error:
            raise InvalidRequest(f"api.{field}: {path}: {error.strerror}", field=f"api.{field}") from None
    return b"\n".join(parts)
