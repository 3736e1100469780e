"""Shoal over its HTTP API: with plain requests, as any client would send them, and through the client.

One keep-alive connection per calling thread; the standard library's client, so that what is measured is the service.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from shoal import Client, Sandbox
from tests.bench.shoalpy import ShoalBox, wanted
from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT, WORKLOAD, Box, Subject

FILE_SIZE = 100 << 20  # bytes
FILE_ROUNDS = 5
CHUNK = 1 << 20
FILE_PATH = "/tmp/bench.bin"

FIRST_BYTES = 50
FIRST_BYTE_EVERY = 0.05  # seconds


class Plain:
    """Requests to the API, each thread over a connection of its own."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._where = (parts.hostname or "", parts.port or 80)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._mine = threading.local()

    def connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if found is None:
            found = self._mine.connection = http.client.HTTPConnection(*self._where, timeout=60)
        return found

    def request(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """Sends it; the caller reads the answer to its end."""
        connection = self.connection()
        connection.request(method, path, body, self._headers)
        response = connection.getresponse()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {response.read()[:500]!r}")
        return response

    def json(self, method: str, path: str, body: Any = None) -> Any:
        data = self.request(method, path, None if body is None else json.dumps(body)).read()
        return json.loads(data) if data else None


class ShoalHttp(Subject):
    """Shoal by plain HTTP."""

    name = "shoal"

    def __init__(self, plain: Plain, image: str) -> None:
        self._plain = plain
        self._image = image

    def create(self, memory: int = MEMORY_LIMIT) -> HttpBox:
        made = self._plain.json("POST", "/v1/sandboxes", wanted(self._image, memory))
        return HttpBox(self._plain, made["id"])

    def close(self) -> None:
        """Boxes are the caller's to close."""


class HttpBox(Box):
    def __init__(self, plain: Plain, sandbox_id: str) -> None:
        self._plain = plain
        self.path = f"/v1/sandboxes/{sandbox_id}"

    def execute(self) -> None:
        done = self._plain.json("POST", f"{self.path}/exec", {"argv": WORKLOAD})
        if done["returncode"] != 0:
            raise RuntimeError(f"{WORKLOAD} exited with {done['returncode']}")

    def write(self, path: str, data: bytes) -> None:
        self._plain.request("PUT", f"{self.path}/files?path={path}", data).read()

    def read(self, path: str) -> bytes:
        return self._plain.request("GET", f"{self.path}/files?path={path}").read()

    def stream_in(self, path: str, data: bytes) -> None:
        """Sends it in pieces, as one would from a file."""
        connection = self._plain.connection()
        connection.putrequest("PUT", f"{self.path}/files?path={path}")
        for name, value in self._plain._headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            connection.send(view[start : start + CHUNK])
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {response.read()[:500]!r}")
        response.read()

    def stream_out(self, path: str) -> int:
        """Reads it in pieces, as one would into a file; how many bytes came."""
        response = self._plain.request("GET", f"{self.path}/files?path={path}")
        buffer, total = bytearray(CHUNK), 0
        while count := response.readinto(buffer):
            total += count
        return total

    def close(self) -> None:
        self._plain.json("DELETE", self.path)


class ShoalClient(Subject):
    """Shoal through the client, connected to the API."""

    name = "shoal"

    def __init__(self, client: Client, image: str) -> None:
        self._client = client
        self._image = image

    def create(self, memory: int = MEMORY_LIMIT) -> ShoalBox:
        return ShoalBox(Sandbox.create(**wanted(self._image, memory), client=self._client))

    def close(self) -> None:
        self._client.close()


def file_rates(subject: ShoalHttp) -> tuple[Samples, Samples]:
    """MB/s of a file of 100 MiB up and down."""
    data = bytes(range(256)) * (FILE_SIZE // 256)
    ups, downs = [], []
    with _box(subject, memory=2 * MEMORY_LIMIT) as box:
        for turn in range(FILE_ROUNDS + 1):
            start = time.perf_counter()
            box.stream_in(FILE_PATH, data)
            written = time.perf_counter()
            if box.stream_out(FILE_PATH) != FILE_SIZE:
                raise RuntimeError("not all of the file came back")
            done = time.perf_counter()
            if turn > 0:  # the first is the warm-up
                ups.append(FILE_SIZE / 1e6 / (written - start))
                downs.append(FILE_SIZE / 1e6 / (done - written))
    return samples("MB/s", ups), samples("MB/s", downs)


def first_byte(subject: ShoalHttp, plain: Plain) -> Samples:
    """Seconds from a running process's writing of a line to the client's having it.

    Both are on this machine, by one clock.
    """
    script = (
        "import time\n"
        f"for _ in range({FIRST_BYTES}):\n"
        f"    time.sleep({FIRST_BYTE_EVERY})\n"
        "    print(time.time(), flush=True)\n"
    )
    with _box(subject) as box:
        started = plain.json("POST", f"{box.path}/processes", {"argv": ["python3", "-c", script]})
        response = plain.request("GET", f"{box.path}/processes/{started['id']}/output?stream=stdout&follow=true")
        times, rest = [], b""
        while chunk := response.read1(4096):
            now = time.time()
            *lines, rest = (rest + chunk).split(b"\n")
            times += [now - float(line) for line in lines]
    if len(times) != FIRST_BYTES:
        raise RuntimeError(f"{len(times)} lines came, not {FIRST_BYTES}")
    return samples("s", times)


@contextmanager
def _box(subject: ShoalHttp, memory: int = MEMORY_LIMIT) -> Iterator[HttpBox]:
    box = subject.create(memory)
    try:
        yield box
    finally:
        box.close()
