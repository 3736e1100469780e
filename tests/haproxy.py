"""A real HAProxy with the configuration that Ray renders, started as Serve starts it, before a server that tests play."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from shoal.cluster.serving import haproxy
from shoal.cluster.serving.haproxy_config import Edge
from shoal.cluster.serving.place import Place
from tests.ports import free_port

_FIRST = 50_001
_RENDER = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
path, socket, *ports = sys.argv[1:]
servers = [ServerConfig(f"replica-{number}", "127.0.0.1", int(port)) for number, port in enumerate(ports)]
fallback = ServerConfig("fallback", "127.0.0.1", 1)
backend = BackendConfig(name="http-shoal", path_prefix="/", app_name="shoal", servers=servers, fallback_server=fallback)
config = HAProxyConfig(socket_path=socket, http_options=HTTPOptions(host="127.0.0.1", port=1), is_head=True)
api = HAProxyApi(config, config_file_path=path)
api.set_backend_configs({"http-shoal": backend} if servers else {})
api._generate_config_file_internal()
"""


@dataclass(frozen=True)
class Front:
    """A HAProxy that listens on `port`; `socket`: its admin socket."""

    port: int
    socket: Path


def render(directory: Path, *ports: int) -> Path:
    """The configuration that Ray writes for replicas on these ports, in the environment that `shoal up` gives it."""
    directory.mkdir(parents=True, exist_ok=True)
    there, text = _rendered(len(ports))
    for number, port in enumerate(ports):
        text = text.replace(f"127.0.0.1:{_FIRST + number} ", f"127.0.0.1:{port} ")
    (directory / "c").write_text(text.replace(there, str(directory)))
    return directory / "c"


@cache
def _rendered(replicas: int) -> tuple[str, str]:
    """(the directory that it is for, the text)."""
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory), "0")
        environment = {**os.environ, **place.environment(20_000), "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": directory}
        ports = [str(_FIRST + number) for number in range(replicas)]
        arguments = [f"{directory}/c", f"{directory}/s", *ports]
        subprocess.run([sys.executable, "-c", _RENDER, *arguments], env=environment, check=True, timeout=60)
        return directory, Path(directory, "c").read_text()


@contextmanager
def running(directory: Path, edge: Edge, *ports: int) -> Iterator[Front]:
    """Started by what Serve starts; its port is chosen here."""
    edge = replace(edge, port=free_port())
    (directory / "edge.json").write_text(edge.to_json())
    with _started(directory, ports):
        yield Front(edge.port, directory / "s")


@contextmanager
def succeeded(directory: Path, *ports: int) -> Iterator[None]:
    """Another takes over from the one that runs in that directory, as Serve has it done where replicas came or went."""
    admin = directory / "s"
    (old,) = (line.split()[1] for line in haproxy.ask(str(admin), "show info").splitlines() if line.startswith("Pid:"))
    with _started(directory, ports, "-sf", old, "-x", str(admin)):
        yield


@contextmanager
def _started(directory: Path, ports: Sequence[int], *more: str) -> Iterator[None]:
    arguments = [str(directory / "edge.json"), "-db", "-f", str(render(directory, *ports)), *more]
    with (directory / "messages").open("ab") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal.cluster.serving.haproxy", *arguments], stdout=messages, stderr=messages
        )
    try:
        admin = str(directory / "s")
        deadline = time.monotonic() + 20
        while f"Pid: {process.pid}\n" not in haproxy.ask(admin, "show info") or haproxy.replicas(admin) < len(ports):
            assert process.poll() is None, (directory / "messages").read_text()
            assert time.monotonic() < deadline, (directory / "messages").read_text()
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait(10)
