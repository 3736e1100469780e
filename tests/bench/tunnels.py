"""A static web server in a sandbox, reached by a tunnel; beside the same server in a container of the engine's, by its
own address.

A published port (`docker run -p`) leads to that address by one rule of the kernel's; the engine that `shoal up` starts
has no such rules.

`STATIC_SERVER` is Python's own static file server, as people run it. `BARE_SERVER` does nothing but answer, so that
nearly all that is measured is the way there.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.bench.overhttp import CHUNK, Plain
from tests.bench.peers.dockerpy import DockerPy
from tests.bench.shoalpy import wanted
from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT

CALLERS = 32
GETS = 1000
RATE_S = 3.0
ROUNDS = 3
LARGE = 100 << 20  # bytes
DOWNLOADS = 5
PORT = 8080

STATIC_SERVER = f"""
import functools, http.server, pathlib
site = pathlib.Path("/tmp/site")
site.mkdir()
(site / "small").write_bytes(bytes(1024))
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1 # head and body in one segment: else Nagle's algorithm delays each answer
    log_message = lambda self, *arguments: None
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
listening = Server(("0.0.0.0", {PORT}), functools.partial(Handler, directory=str(site)))
print("ready", flush=True)
listening.serve_forever()
"""

BARE_SERVER = f"""
import socket, threading
SMALL, LARGE = bytes(1024), bytes({LARGE})
def head(body): return b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
ANSWER = head(SMALL) + SMALL
def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asked = b""
    while data := connection.recv(65536):
        asked += data
        while b"\\r\\n\\r\\n" in asked:
            request, _, asked = asked.partition(b"\\r\\n\\r\\n")
            if request.startswith(b"GET /large"):
                connection.sendall(head(LARGE))
                connection.sendall(LARGE)
            else:
                connection.sendall(ANSWER)
    connection.close()
listening = socket.create_server(("0.0.0.0", {PORT}), backlog=128)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""


@dataclass(frozen=True)
class Site:
    """Where the server is reached: `head` are the lines that each request has besides its first."""

    host: str
    port: int
    path: str
    head: str = ""

    def request(self, name: str) -> bytes:
        return f"GET {self.path}{name} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{self.head}\r\n".encode()


@contextmanager
def by_tunnel(plain: Plain, image: str, server: str) -> Iterator[Site]:
    """In a sandbox without a network."""
    made = plain.json("POST", "/v1/sandboxes", {**wanted(image, MEMORY_LIMIT), "network": "none"})
    at = f"/v1/sandboxes/{made['id']}"
    try:
        started = plain.json("POST", f"{at}/processes", {"argv": ["python3", "-c", server]})
        output = plain.request("GET", f"{at}/processes/{started['id']}/output?stream=stdout&follow=true")
        if output.readline() != b"ready\n":
            raise RuntimeError("the server in the sandbox did not start")
        output.close()
        plain.connection().close()  # of an answer that was not read to its end
        tunnel = plain.json("POST", f"{at}/tunnels", {"port": PORT, "public": True})
        parts = urlsplit(tunnel["url"])
        site = Site(parts.hostname or "", parts.port or 80, parts.path)
        _await(site)
        yield site
    finally:
        plain.json("DELETE", at)


@contextmanager
def by_address(docker_py: DockerPy, server: str) -> Iterator[Site]:
    """In a container on a bridge."""
    container = docker_py.start(("python3", "-c", server), MEMORY_LIMIT)
    try:
        container.reload()
        (network,) = container.attrs["NetworkSettings"]["Networks"].values()
        site = Site(network["IPAddress"], PORT, "/")
        _await(site)
        yield site
    finally:
        container.remove(force=True)


def latency(site: Site) -> Samples:
    """Seconds of a small GET, one after the other on one connection."""
    return samples("s", asyncio.run(_latency(site)))


def rates(sites: Mapping[str, Site]) -> dict[str, Samples]:
    """Small GETs a second of `CALLERS` at once, each on a connection of its own; the sites take turns."""
    found: dict[str, list[float]] = {name: [] for name in sites}
    for _ in range(ROUNDS):
        for name, site in sites.items():
            found[name].append(asyncio.run(_rate(site)))
    return {name: samples("/s", values) for name, values in found.items()}


def download(site: Site) -> Samples:
    """MB/s of 100 MiB."""
    return samples("MB/s", [_download(site) for _ in range(DOWNLOADS)])


async def _latency(site: Site) -> list[float]:
    reader, writer = await asyncio.open_connection(site.host, site.port)
    times = []
    for _ in range(GETS):
        start = time.perf_counter()
        await _get(reader, writer, site.request("small"))
        times.append(time.perf_counter() - start)
    writer.close()
    return times


async def _rate(site: Site) -> float:
    done = 0
    end = time.perf_counter() + RATE_S
    request = site.request("small")

    async def caller() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection(site.host, site.port)
        while time.perf_counter() < end:
            await _get(reader, writer, request)
            done += 1
        writer.close()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return done / RATE_S


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the answer was {head[:200]!r}")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    await reader.readexactly(int(length))


def _download(site: Site) -> float:
    buffer = bytearray(CHUNK)
    with socket.create_connection((site.host, site.port), 60) as connection:
        start = time.perf_counter()
        connection.sendall(site.request("large"))
        total = 0
        while total < LARGE:
            if not (count := connection.recv_into(buffer)):
                raise RuntimeError("not all of it came")
            total += count
        return LARGE / 1e6 / (time.perf_counter() - start)


def _await(site: Site, within_s: float = 20.0) -> None:
    """Returns once the server answers."""
    end = time.monotonic() + within_s
    while True:
        try:
            asyncio.run(_once(site))
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


async def _once(site: Site) -> None:
    async with asyncio.timeout(2):
        reader, writer = await asyncio.open_connection(site.host, site.port)
    try:
        await _get(reader, writer, site.request("small"))
    finally:
        writer.close()
