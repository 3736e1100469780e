"""The API as `shoal up` serves it: it recovers, loses no request under way, and slow clients cost nothing."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
import pytest

from shoal.client import config_file
from shoal.cluster.local import api as local_api
from shoal.cluster.local import processes
from shoal.cluster.local import up as local_cluster
from shoal.model.cluster_file import ClusterFile, ProcessRef
from shoal.model.errors import ShoalError
from shoal.model.http import error_from_response
from tests.cluster import Cluster
from tests.processes import actor_names, actor_pid, command_line, eventually, gateway_pid, kill, kill_gateway

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

MIB = 1 << 20


@dataclass(frozen=True)
class Api:
    """The cluster's API, asked without any client of Shoal's."""

    file: ClusterFile
    host: str
    port: int
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = None, timeout: float = 30
    ) -> tuple[int, bytes, str]:
        """(status, body, content type) of a request on a connection of its own."""
        headers = self.headers if key is None else {**self.headers, "Idempotency-Key": key}
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=timeout)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers["Content-Type"] or ""

    def call(self, method: str, path: str, body: object = None, *, key: str | None = None) -> dict[str, object]:
        """The answer's JSON; the error that it stands for is raised."""
        status, data, content_type = self.ask(method, path, body, key=key)
        if status >= 400:
            raise error_from_response(status, content_type, data)
        found: dict[str, object] = json.loads(data)
        return found

    def workers(self, title: str) -> list[ProcessRef]:
        """Processes of the cluster by what they call themselves."""
        everything = processes.of_cluster(self.file.cluster, Path(self.file.temp_dir))
        return [process for process in everything if title in command_line(process.pid)]

    def replicas(self) -> list[int]:
        return sorted(process.pid for process in self.workers("ray::ServeReplica:"))

    def whole(self) -> bool:
        return local_api.answers(self.file, "/v1/ready") and local_api.replicas(self.file) == 2


@pytest.fixture
def api(cluster: Cluster) -> Api:
    host, _, port = cluster.file.api_listens.rpartition(":")
    token = config_file.read().servers[cluster.file.api_url].token
    assert token is not None
    found = Api(cluster.file, host, int(port), token)
    eventually(found.whole, what="the API")
    return found


@dataclass
class Load:
    """What callers got who asked again and again."""

    good: int = 0
    problems: list[ShoalError] = field(default_factory=list)
    unreached: int = 0
    refused: int = 0
    slowest: float = 0.0


@contextmanager
def load(ask: Callable[[], tuple[int, bytes, str]], callers: int = 4) -> Iterator[Load]:
    """`callers` threads ask until the block is left."""
    result, done = Load(), threading.Event()

    def one() -> None:
        while not done.is_set():
            start = time.monotonic()
            try:
                status, body, content_type = ask()
                if status < 400:
                    result.good += 1
                else:
                    result.problems.append(error_from_response(status, content_type, body))
            except (OSError, http.client.HTTPException) as error:
                result.unreached += 1
                result.refused += isinstance(error, ConnectionRefusedError)
            result.slowest = max(result.slowest, time.monotonic() - start)
            if result.unreached:
                done.wait(0.05)

    threads = [threading.Thread(target=one) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a request hangs"


def test_up_leaves_an_api_and_a_token_for_it(api: Api) -> None:
    me = api.call("GET", "/v1/tokens/self")
    assert (me["name"], me["scope"], me["environment"]) == ("shoal up", "admin", "*")
    assert config_file.path().stat().st_mode & 0o077 == 0
    assert "sandboxes" in api.call("GET", "/v1/sandboxes")
    assert api.ask("GET", "/v1/health")[0] == 200


def test_status_tells_of_it(api: Api) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli.main", "status", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    status = json.loads(done.stdout)
    assert (status["api"], status["replicas"], status["api_url"]) == (True, 2, api.file.api_url)


def test_a_request_id_is_said_once(api: Api) -> None:
    with closing(http.client.HTTPConnection(api.host, api.port, timeout=10)) as connection:
        connection.request("GET", "/v1/sandboxes", headers={**api.headers, "X-Request-Id": "one"})
        assert connection.getresponse().headers.get_all("X-Request-Id") == ["one"]


def test_a_replica_that_is_killed_takes_no_request_along(api: Api) -> None:
    before = api.replicas()
    keys = itertools.count()
    made: dict[str, str] = {}

    def create() -> tuple[int, bytes, str]:
        key = f"killed-replica-{next(keys)}"
        status, body, content_type = api.ask("POST", "/v1/sandboxes", {"cpu": 0.02, "tags": {"key": key}}, key=key)
        if status == 201:
            made[key] = json.loads(body)["id"]
        return status, body, content_type

    with load(lambda: api.ask("GET", "/v1/sandboxes?limit=1")) as looks, load(create, 2) as creates:
        eventually(lambda: looks.good > 20 and creates.good > 0, 30, "the load")
        kill(before[0])
        eventually(lambda: before[0] not in api.replicas() and api.whole(), what="a new replica")
    assert looks.problems == []
    assert looks.unreached == 0
    assert all(error.retryable for error in creates.problems), creates.problems
    assert creates.unreached == 0
    assert max(looks.slowest, creates.slowest) < 25
    for identifier in made.values():
        api.call("DELETE", f"/v1/sandboxes/{identifier}")
    everything = api.call("GET", "/v1/sandboxes?include_ended=true&limit=1000")["sandboxes"]
    assert isinstance(everything, list)
    found = [sandbox["tags"].get("key", "") for sandbox in everything]
    assert all(found.count(key) == 1 for key in made)


def test_a_gateway_that_is_killed_refuses_nobody(api: Api) -> None:
    """What it was answering breaks off; who connects meanwhile waits for the next one."""
    old = gateway_pid()
    with load(lambda: api.ask("GET", "/v1/health"), 2) as looks:
        eventually(lambda: looks.good > 20, what="the load")
        kill_gateway()
        eventually(lambda: gateway_pid() not in (None, old) and api.whole(), what="a new gateway")
        good = looks.good
        eventually(lambda: looks.good > good + 20, what="answers")
    assert looks.refused == 0
    assert looks.unreached <= 2, "one for each caller"
    assert all(error.retryable for error in looks.problems), looks.problems


@pytest.mark.long
def test_a_node_actor_that_is_killed_takes_its_gateway_again(api: Api) -> None:
    before = gateway_pid()
    with load(lambda: api.ask("GET", "/v1/health"), 2) as looks:
        kill(actor_pid(actor_names("node-")[0]))
        eventually(lambda: looks.good > 20, what="the load")
        eventually(lambda: api.call("GET", "/v1/nodes") is not None, what="the node actor")
    assert (looks.problems, looks.unreached, gateway_pid()) == ([], 0, before)
    kill_gateway()  # by now it is watched again, and its socket is kept
    eventually(lambda: gateway_pid() not in (None, before) and api.whole(), what="a new gateway")


def test_while_serves_controller_is_dead_the_api_answers(api: Api) -> None:
    (old,) = api.workers("ray::ServeController")
    with load(lambda: api.ask("GET", "/v1/sandboxes?limit=1"), 2) as looks:
        kill(old.pid)
        eventually(lambda: api.workers("ray::ServeController") not in ([], [old]), what="a new controller")
    assert (looks.problems, looks.unreached) == ([], 0)
    eventually(api.whole, what="the API")


def test_replicas_roll_with_requests_in_flight(api: Api, cluster: Cluster) -> None:
    before, gateway = api.replicas(), gateway_pid()
    sandbox = str(api.call("POST", "/v1/sandboxes", {"timeout": 120})["id"])
    slow = {"command": "sleep 6; echo done"}
    try:
        with (
            load(lambda: api.ask("GET", "/v1/sandboxes?limit=1")) as looks,
            load(lambda: api.ask("POST", f"/v1/sandboxes/{sandbox}/exec", slow), 2) as execs,
        ):
            local_cluster.roll(cluster.machine.settings)
            eventually(lambda: not set(before) & set(api.replicas()), 60, "the end of the old replicas")
    finally:
        api.call("DELETE", f"/v1/sandboxes/{sandbox}")
    assert len(api.replicas()) == 2
    assert gateway_pid() != gateway
    assert (looks.problems, looks.unreached) == ([], 0)
    assert (execs.problems, execs.unreached) == ([], 0)
    assert execs.good >= 2
    assert api.call("GET", "/v1/tokens/self")["name"] == "shoal up", "the token stays good"


def test_between_replicas_nobody_speaks_without_rays_token(api: Api) -> None:
    pids = api.replicas()
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    ports = [line.split()[3].rpartition(":")[2] for line in lines if any(f"pid={pid}," in line for pid in pids)]
    refused = 0
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            method = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as failed:
                method(b"", timeout=20)
            code = failed.value.code()  # type: ignore[attr-defined]
        assert code != grpc.StatusCode.OK
        refused += code is grpc.StatusCode.UNAUTHENTICATED
    assert refused >= len(pids)


def resident(pid: int) -> int:
    """Bytes of memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture
def sandbox(api: Api) -> Iterator[str]:
    identifier = str(api.call("POST", "/v1/sandboxes", {"timeout": 120})["id"])
    yield identifier
    api.call("DELETE", f"/v1/sandboxes/{identifier}")


def most_that_goes(connection: socket.socket, piece: bytes, total: int) -> int:
    """How many bytes can be sent until for two seconds nothing more is taken."""
    connection.settimeout(2)
    sent = 0
    while sent < total:
        try:
            sent += connection.send(piece)
        except TimeoutError:
            break
    return sent


def test_what_nobody_uses_is_not_kept_in_memory(api: Api, sandbox: str) -> None:
    started = api.call("POST", f"/v1/sandboxes/{sandbox}/processes", {"argv": ["sleep", "60"]})
    before = {pid: resident(pid) for pid in api.replicas()}
    path = f"/v1/sandboxes/{sandbox}/processes/{started['id']}/stdin"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n"
    with socket.create_connection((api.host, api.port), 10) as client:
        client.sendall(f"{head}Content-Length: {512 * MIB}\r\n\r\n".encode())
        sent = most_that_goes(client, bytes(MIB), 512 * MIB)
        grown = max(resident(pid) - was for pid, was in before.items())
    assert sent < 64 * MIB
    assert grown < 64 * MIB


def test_what_nobody_reads_is_not_kept_in_memory(api: Api, sandbox: str) -> None:
    api.call("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "head -c 300000000 /dev/zero > /tmp/zeros"})
    before = {pid: resident(pid) for pid in api.replicas()}
    path = f"/v1/sandboxes/{sandbox}/files?path=/tmp/zeros"
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n\r\n"
    clients = [socket.create_connection((api.host, api.port), 30) for _ in range(4)]
    try:
        for client in clients:
            client.sendall(head.encode())
            assert client.recv(12) == b"HTTP/1.1 200"
        most = 0
        end = time.monotonic() + 3
        while time.monotonic() < end:
            most = max(most, *(resident(pid) - was for pid, was in before.items()))
            time.sleep(0.05)
    finally:
        for client in clients:
            client.close()
    assert most < 64 * MIB


@pytest.mark.anyio
async def test_a_message_that_is_too_long_ends_its_websocket(api: Api, sandbox: str) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {api.token}"}) as session,
        session.ws_connect(f"http://{api.host}:{api.port}/v1/sandboxes/{sandbox}/connect") as connection,
    ):
        assert (await connection.receive_json(timeout=30)) == {"ok": True}
        await connection.send_bytes(bytes(2 * MIB))
        closed = await connection.receive(timeout=30)
    assert closed.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    # 1009, unless the rest of the message was still under way: then the connection just ends.
    assert connection.close_code in (1009, 1006)
