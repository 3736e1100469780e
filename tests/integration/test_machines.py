"""A cluster of three machines: they join by hand, serve clients elsewhere, and are drained and lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from shoal.cli.exits import EXIT_CODES
from shoal.client import config_file
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.cluster.local import joined_file
from shoal.model.access import Tunnel
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, InvalidRequest, SandboxEnded
from shoal.model.join_token import parse
from shoal.model.states import Reason
from shoal.transport.http import HttpTransport
from tests.cluster import free_subnet
from tests.integration.machines import Lan, Machine, lan, processes_of

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.timeout(600)]

_CLOSED = (
    "add table ip t; add chain ip t c {{ type filter hook input priority 0; }}; "
    "add rule ip t c ip saddr {} ct state new drop"
)
"""Rules of a machine that nobody calls: as behind NAT."""

_WAIT = """
import asyncio, json, sys
import shoal

async def main():
    client = await shoal.connect.aio()
    assert type(client.transport).__name__ == "RayTransport"
    sandbox = await shoal.Sandbox.from_id.aio(sys.argv[1])
    process = await sandbox.exec.aio("sleep 300")
    calls = [asyncio.ensure_future(call) for call in (process.wait.aio(), sandbox.run.aio("sleep 300"))]
    await asyncio.sleep(1)
    print("ready", flush=True)
    ends = await asyncio.gather(*calls, return_exceptions=True)
    print(json.dumps([[end.reason, end.retryable] for end in ends]))

asyncio.run(main())
"""
"""Waits in a sandbox, through Ray and the relay, and tells what its calls end with."""

_DEATH = """
import sys, time
import ray

ray.init(log_to_driver=False)
print("ready", flush=True)
while not any(node["NodeID"] == sys.argv[1] and not node["Alive"] for node in ray.nodes()):
    time.sleep(0.1)
print("known", time.time(), flush=True)
"""
"""Tells when Ray publishes a node as dead."""

_TOLD_S = 15.0
"""How long after that callers may wait to be told; the machine may be busy."""

SHOAL = str(Path(sys.executable).with_name("shoal"))


class Head:
    """The head's machine, which is this one. `environ`: its own cluster's, beside the session's."""

    def __init__(self, net: Lan, directory: Path, engine: str) -> None:
        self.lan = net
        self.environ = {
            "SHOAL_STATE_DIR": str(directory),
            "SHOAL_RUN_DIR": str(directory / "run"),
            "SHOAL_CONFIG": str(directory / "config.toml"),
            "SHOAL_ENGINE_ADDRESS": engine,
            "SHOAL_NETWORK__BRIDGE": f"sh{net.bridge}",
            "SHOAL_NETWORK__SUBNET": str(free_subnet()),
            "SHOAL_API__PORT": "0",
            "SHOAL_API__REPLICAS": "1",
            "SHOAL_POOLS__IDLE_SLOTS": "0",
            "SHOAL_POOLS__READY": "0",
            # Ray takes a machine for dead after five failed checks: five seconds instead of fifteen.
            "RAY_health_check_period_ms": "1000",
        }

    def shoal(self, *arguments: str, check: bool = True) -> str:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        done = subprocess.run(
            [SHOAL, *arguments],
            env={**environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Starts a program that joins the cluster's Ray."""
        exports = [line.removeprefix("export ") for line in self.shoal("status", "--env").splitlines()]
        environ = {**os.environ, **self.environ, **dict(line.split("=", 1) for line in exports)}
        if "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in "".join(exports):
            environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
        return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True)

    def client(self) -> Client:
        told = json.loads(self.shoal("status", "--json"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOAL_CONFIG", self.environ["SHOAL_CONFIG"])
            token = config_file.read().servers[told["api_url"]].token
        return Client(HttpTransport(told["api_url"], token))


@pytest.fixture(scope="module")
def head(clusters_engine: str) -> Iterator[Head]:
    with lan() as net, tempfile.TemporaryDirectory(prefix="shoal-h", dir="/tmp") as directory:
        made = Head(net, Path(directory), clusters_engine)
        try:
            made.shoal("up", "--address-ip", net.address)
            yield made
        finally:
            made.shoal("down")


@pytest.fixture(scope="module")
def machines(head: Head) -> Iterator[list[Machine]]:
    """Two that have joined, in the regions `a` and `b`."""
    token, address = _way_in(head)
    with head.lan.machines(11, 12) as made:
        with ThreadPoolExecutor() as pool:
            argv = ("join", address, "--token-file", "-", "--region")
            for done in [
                pool.submit(machine.run, SHOAL, *argv, region, stdin=token)
                for machine, region in zip(made, "ab", strict=True)
            ]:
                done.result()
        yield made


@pytest.fixture
async def client(head: Head, machines: list[Machine], anyio_backend: str) -> AsyncIterator[Client]:
    made = head.client()
    yield made
    await made.close.aio()


async def test_three_machines(head: Head, machines: list[Machine], client: Client) -> None:
    """One story, for a cluster of three machines takes a while to start."""
    one, other = machines
    nodes = {node.region: node for node in await client.nodes.aio()}
    assert {nodes["a"].address.partition(":")[0], nodes["b"].address.partition(":")[0]} == {one.address, other.address}
    assert {nodes["a"].hostname, nodes["b"].hostname} == {one.name, other.name}
    assert len({node.fingerprint for node in nodes.values()}) == len(nodes), "each relay has its own certificate"
    assert all(len(node.fingerprint) == 64 for node in nodes.values()), "and what passes through it is encrypted"
    first, second = await asyncio.gather(*(_server(client, region) for region in "ab"))

    # Their clients are elsewhere: commands, files and tunnels pass through the relays of other machines.
    for sandbox, region in ((first, "a"), (second, "b")):
        assert (await sandbox.run.aio("cat /srv/index.html")).stdout == region
        tunnel = await sandbox.expose.aio(8000)
        assert await _get(tunnel) == region

    # Neither the other machine nor its sandboxes are reached from inside.
    relay = nodes["b"].address
    inside = (await second.run.aio("hostname -i; cat /proc/net/fib_trie")).stdout
    address = next(
        word for word in inside.split() if word.startswith("10.") and not word.endswith((".0", ".1", ".255"))
    )
    ray = json.loads(await asyncio.to_thread(head.shoal, "status", "--json"))["ray_address"]
    for target in (relay, ray, f"{address}:8000"):
        host, _, port = target.rpartition(":")
        reached = await first.run.aio(f"timeout 1 bash -c '</dev/tcp/{host}/{port}'")
        assert reached.returncode != 0, target

    kept = await Sandbox.create.aio(client=client, persistent=True, region=["a", "b"])
    assert (await kept.info.aio()).node_id == nodes["a"].id
    await kept.files.write_text.aio("/root/notes", "kept")
    await kept.stop.aio()

    dying = asyncio.ensure_future(asyncio.to_thread(head.start, sys.executable, "-c", _DEATH, nodes["b"].id))

    # A drain waits for what runs, keeps new ones away meanwhile, and evicts if it must.
    with pytest.raises(DeadlineExceeded):
        await client.drain_node.aio(nodes["a"].id, why="a disk fails", timeout=0.1)
    (drained,) = [node for node in await client.nodes.aio() if node.region == "a"]
    assert drained.cordon is not None
    assert drained.cordon.why == "a disk fails"
    assert (await first.run.aio("echo still")).stdout == "still\n"
    await asyncio.to_thread(one.run, SHOAL, "leave", "--force")
    with pytest.raises(SandboxEnded) as ended:
        await first.run.aio("true")
    assert (ended.value.reason, ended.value.retryable) == (Reason.EVICTED, False)

    # The disk of a stopped sandbox has left its machine before that, and comes up on another one.
    assert (await kept.info.aio()).state == "stopped"
    await kept.start.aio()
    assert (await kept.info.aio()).node_id == nodes["b"].id
    assert (await kept.files.read_text.aio("/root/notes")) == "kept"
    await kept.terminate.aio()
    _nothing_left(one)

    # A machine that dies takes its sandboxes along, and everybody who waits for them is told.
    flying = asyncio.ensure_future(second.run.aio("sleep 300"))
    waiting = asyncio.ensure_future(second.wait.aio())
    death = await dying
    assert death.stdout is not None
    assert await asyncio.to_thread(death.stdout.readline) == "ready\n"
    joined = joined_file.read(Path(other.environ["SHOAL_STATE_DIR"]))
    assert joined is not None
    for pid in (*(process.pid for process in joined.ray), *_relays(other)):
        os.kill(pid, signal.SIGKILL)
    began = time.time()
    with pytest.raises(SandboxEnded) as lost:
        await flying
    assert (lost.value.reason, lost.value.retryable) == (Reason.NODE_LOST, True)
    assert (await _reason(waiting, second)) is Reason.NODE_LOST
    told_at = time.time()
    output, _ = await asyncio.to_thread(death.communicate, timeout=60)
    (known,) = [line for line in output.splitlines() if line.startswith("known ")]  # Ray prints, too
    known_at = float(known.split()[1])
    print(f"Ray knew after {known_at - began:.1f} s, callers {told_at - known_at:.1f} s later")
    assert told_at - known_at < _TOLD_S
    assert [node.region for node in await client.nodes.aio()] == [None]
    await asyncio.to_thread(other.run, SHOAL, "leave")
    _nothing_left(other)


async def test_a_wrong_token_is_refused_before_anything_is_started(head: Head, anyio_backend: str) -> None:
    text, address = await asyncio.to_thread(_way_in, head)
    token = parse(text)
    wrong = replace(token, ray_token=token.ray_token[::-1])
    with head.lan.machine(14) as machine:
        join = (SHOAL, "join", address, "--token-file", "-")
        refused = await asyncio.to_thread(partial(machine.run, *join, stdin=wrong.text(), check=False))
        assert refused.returncode == EXIT_CODES[InvalidRequest], refused.stdout
        _nothing_left(machine)


@pytest.mark.long
async def test_a_machine_that_vanishes(head: Head, anyio_backend: str) -> None:
    """Its network is cut: no connection is closed. And one that the head does not reach cannot join."""
    token, address = await asyncio.to_thread(_way_in, head)
    client = head.client()
    try:
        with head.lan.machine(13) as machine:
            join = (SHOAL, "join", address, "--token-file", "-", "--region", "v")
            machine.run("nft", _CLOSED.format(head.lan.address))
            refused = await asyncio.to_thread(partial(machine.run, *join, stdin=token, check=False))
            assert refused.returncode == EXIT_CODES[FailedPrecondition], refused.stdout
            machine.run("nft", "delete", "table", "ip", "t")
            _nothing_left(machine)

            await asyncio.to_thread(partial(machine.run, *join, stdin=token))
            sandbox = await Sandbox.create.aio(client=client, region="v")
            flying = asyncio.ensure_future(sandbox.run.aio("sleep 300"))
            through_ray = await asyncio.to_thread(head.start, sys.executable, "-c", _WAIT, sandbox.id)
            assert through_ray.stdout is not None
            assert await asyncio.to_thread(through_ray.stdout.readline) == "ready\n"
            machine.unplug()
            with pytest.raises(SandboxEnded) as lost:
                await flying
            assert (lost.value.reason, lost.value.retryable) == (Reason.NODE_LOST, True)
            told, _ = await asyncio.to_thread(through_ray.communicate, timeout=60)
            assert json.loads(told.splitlines()[-1]) == [["node_lost", True], ["node_lost", True]]  # Ray prints, too
            await asyncio.to_thread(machine.run, SHOAL, "leave", "--force")
            _nothing_left(machine)
    finally:
        await client.close.aio()


@pytest.mark.long
async def test_a_machine_behind_nat(head: Head, anyio_backend: str) -> None:
    """It is refused, and joins at an address of a VPN."""
    token, address = await asyncio.to_thread(_way_in, head)
    client = head.client()
    try:
        with head.lan.machines(15, 16) as (machine, router):
            await asyncio.to_thread(machine.hide_behind, router)
            join = partial(machine.run, SHOAL, "join", address, "--token-file", "-", "--region", "n")
            for wrong, error in (((), FailedPrecondition), (("--address-ip", router.address), InvalidRequest)):
                refused = await asyncio.to_thread(partial(join, *wrong, stdin=token, check=False))
                assert refused.returncode == EXIT_CODES[error], refused.stdout
                assert "address" in refused.stdout
                _nothing_left(machine)
            with machine.vpn("10.99.0.1", "10.99.0.2"):
                await asyncio.to_thread(partial(join, "--address-ip", "10.99.0.2", stdin=token))
                sandbox = await Sandbox.create.aio(client=client, region="n")
                assert (await sandbox.run.aio("echo hello")).stdout == "hello\n"
                await asyncio.to_thread(machine.run, SHOAL, "leave", "--force")
                _nothing_left(machine)
    finally:
        await client.close.aio()


async def _server(client: Client, region: str) -> Sandbox:
    sandbox = await Sandbox.create.aio(client=client, region=region)
    await sandbox.files.write_text.aio("/srv/index.html", region)
    await sandbox.exec.aio("python3 -m http.server -d /srv 8000")
    await sandbox.run.aio(
        "until python3 -c \"import socket; socket.create_connection(('127.0.0.1', 8000))\" 2>&1; do sleep 0.1; done"
    )
    return sandbox


async def _get(tunnel: Tunnel) -> str:
    headers = {"X-Shoal-Connect-Token": str(tunnel.token)}
    async with aiohttp.ClientSession() as session, session.get(str(tunnel.url), headers=headers) as answer:
        return await answer.text()


async def _reason(waiting: asyncio.Future[int], sandbox: Sandbox) -> Reason | None:
    try:
        await waiting
    except SandboxEnded as error:
        return Reason(error.reason)
    return (await sandbox.info.aio()).reason


def _relays(machine: Machine) -> list[int]:
    found = []
    for pid in processes_of(machine):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[1:2] == [b"relay"]:
            found.append(pid)
    return found


def _way_in(head: Head) -> tuple[str, str]:
    """The text of a join token, and the head's address."""
    return head.shoal("node", "token"), json.loads(head.shoal("status", "--json"))["ray_address"]


def _nothing_left(machine: Machine) -> None:
    """Of a machine that has left: no process, interface, rule, mount or file beside what it keeps."""
    deadline = time.monotonic() + 10
    while processes_of(machine) and time.monotonic() < deadline:
        time.sleep(0.05)  # a shim ends by itself, a moment after its container
    assert processes_of(machine) == []
    assert machine.run("ip", "-br", "link").stdout.split()[0::1].count("shoal0") == 0
    assert machine.run("nft", "list", "tables").stdout == ""
    assert str(machine.directory) not in machine.run("cat", "/proc/mounts").stdout
    assert not Path(machine.environ["SHOAL_RUN_DIR"]).exists()
    assert not joined_file.path_in(Path(machine.environ["SHOAL_STATE_DIR"])).exists()
