"""Ray's GCS or the head's machine goes and comes back: with Redis and PostgreSQL what runs elsewhere goes on."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.client.sandbox import Sandbox
from shoal.cluster.local import packages, processes
from shoal.model import cluster_file
from shoal.model.errors import SandboxEnded
from shoal.model.states import Reason
from tests.cluster import printing
from tests.integration.machines import Machine, lan
from tests.integration.test_machines import SHOAL, Head
from tests.ports import free_port
from tests.postgres import Postgres

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis that writes what it is told."""
    packages.ensure({"redis-server": "redis-server"}, printing)
    port, password = free_port(), secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="shoal-redis", dir="/tmp") as directory:
        argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--requirepass", password]
        process = subprocess.Popen([*argv, "--dir", directory, "--appendonly", "yes"], stdout=subprocess.DEVNULL)
        try:
            yield f"redis://:{password}@127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sandboxes_elsewhere_outlive_the_head(clusters_engine: str, postgres: Postgres) -> None:
    with lan("198.18.7") as net, redis() as redis_url, postgres.database() as database:
        directory = Path(tempfile.mkdtemp(prefix="shoal-h", dir="/tmp"))
        head = Head(net, directory, clusters_engine)
        head.environ |= {
            "SHOAL_STORE__URL": database,
            "SHOAL_STORE__REDIS": redis_url,
            "SHOAL_API__PORT": str(free_port()),
        }
        try:
            await asyncio.to_thread(head.shoal, "up", "--address-ip", net.address)
            with net.machine(11) as machine:
                await _outlive(head, machine)
        finally:
            await asyncio.to_thread(head.shoal, "down")
            shutil.rmtree(directory)


async def _outlive(head: Head, machine: Machine) -> None:
    address = json.loads(head.shoal("status", "--json"))["ray_address"]
    await asyncio.to_thread(
        machine.run, SHOAL, "join", address, "--token-file", "-", "--region", "a", stdin=head.shoal("node", "token")
    )
    client = head.client()
    elsewhere = await Sandbox.create.aio(client=client, region="a", name="elsewhere")
    process = await elsewhere.exec.aio("sleep 1000")
    (head_node,) = [node for node in await client.nodes.aio() if node.region is None]
    here = await Sandbox.create.aio(client=client)
    on_head = (await here.info.aio()).node_id == head_node.id
    await client.cordon.aio(next(n for n in await client.nodes.aio() if n.region == "a").id, why="kept")

    # The GCS dies alone; then all that is Ray's on the head's machine, at once.
    for alone in (True, False):
        _kill(head, "gcs_server" if alone else "")
        await client.close.aio()
        await asyncio.to_thread(head.shoal, "up")
        client = head.client()
        again = await Sandbox.from_name.aio("elsewhere", client=client)
        assert again.id == elsewhere.id
        assert await (again.process(process.id)).poll.aio() is None, "its process runs on"
        assert (await again.run.aio("echo still")).stdout == "still\n"
        (kept,) = [node for node in await client.nodes.aio() if node.cordon is not None]
        assert kept.region == "a"
    if on_head:
        with pytest.raises(SandboxEnded) as lost:
            await (await Sandbox.from_id.aio(here.id, client=client)).run.aio("true")
        assert lost.value.reason == Reason.NODE_LOST
    fresh = await Sandbox.create.aio(client=client)
    assert (await fresh.run.aio("echo new")).stdout == "new\n"
    await client.close.aio()
    await asyncio.to_thread(machine.run, SHOAL, "leave", "--force")


def _kill(head: Head, program: str) -> None:
    """All processes of Ray's on the head's machine that have this in their command."""
    cluster = cluster_file.read(Path(head.environ["SHOAL_STATE_DIR"]))
    assert cluster is not None
    found = processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))
    victims = [each.pid for each in found if program in Path(f"/proc/{each.pid}/cmdline").read_text("utf-8", "replace")]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
