"""Persistent sandboxes on a real cluster: what is kept through stops, kills and a request that starts one."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

import shoal
from shoal.actors.names import node_actor_name
from shoal.client.dual_method import block_on
from shoal.model import verbs
from shoal.model.ids import MAIN_PROCESS
from tests import leaks
from tests.cluster import Cluster
from tests.processes import actor_pid, eventually, kill

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

WEB = 8080
SERVER = ("python3", "-m", "http.server", str(WEB), "--directory", "/srv")


@contextmanager
def machine(*command: str, **options: object) -> Iterator[shoal.Sandbox]:
    sandbox = shoal.Sandbox.create(*command, **{"persistent": True, "disk": 256, **options})  # type: ignore[arg-type]
    try:
        yield sandbox
    finally:
        sandbox.terminate()


def fetch(url: str, token: str | None = None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=90)
    try:
        connection.request("GET", parts.path, headers={} if token is None else {"X-Shoal-Connect-Token": token})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_files_name_tunnel_and_variables_outlive_a_stop(cluster: Cluster) -> None:
    before = leaks.look(cluster.file)
    with machine(*SERVER, name="kept", workdir="/srv", env={"COLOUR": "green"}, tags={"a": "b"}) as sandbox:
        sandbox.files.write_text("/srv/page", "here")
        sandbox.run("echo 1 > /root/count; sync", check=True)
        tunnel, raw = sandbox.expose(WEB), sandbox.expose(WEB + 1, protocol="tcp")
        sandbox.stop()
        info = sandbox.info()
        assert (info.state, info.reason, sandbox.poll()) == ("stopped", "stopped", None)
        assert [each.id for each in shoal.Sandbox.list(states=["stopped"])] == [sandbox.id]
        for use in (lambda: sandbox.run("true"), lambda: sandbox.files.read_text("/srv/page")):
            with pytest.raises(shoal.FailedPrecondition) as caught:
                use()
            assert caught.value.state == "stopped"
        found = shoal.Sandbox.from_name("kept")
        found.start()
        assert found.id == sandbox.id
        assert sandbox.run("echo $COLOUR $(cat /root/count /srv/page)").stdout == "green 1 here\n"
        assert [each.url for each in sandbox.tunnels()] == [tunnel.url, None]
        assert sandbox.expose(WEB + 1, protocol="tcp").address == raw.address
        eventually(lambda: fetch(f"{tunnel.url}page", tunnel.token) == (200, b"here"), what="its command's answer")
        sandbox.process(MAIN_PROCESS).kill()
        eventually(lambda: sandbox.info().state == "stopped", what="a stop")
        assert (sandbox.info().reason, sandbox.info().returncode) == ("completed", -9)
        sandbox.start()
    leaks.assert_none(cluster.file, before)


def test_a_request_to_its_tunnel_starts_it_once(cluster: Cluster) -> None:
    with machine(*SERVER, workdir="/srv", idle_timeout=2.0) as sandbox:
        sandbox.files.write_text("/srv/page", "here")
        tunnel = sandbox.expose(WEB)
        sandbox.stop()
        assert fetch(f"{tunnel.url}page")[0] == 401
        assert sandbox.info().state == "stopped"
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: fetch(f"{tunnel.url}page", tunnel.token), range(8)))
        assert answers == [(200, b"here")] * 8
        told = block_on(cluster.client.transport.ask(verbs.events, 0, sandbox_id=sandbox.id))
        assert [event.kind for event in told].count("running") == 2
        assert sandbox.info().state == "running"


def test_what_stops_by_itself_starts_again_if_it_shall(cluster: Cluster) -> None:
    with machine("sh", "-c", "echo run >> /root/runs; sleep 1; exit 3", restart="on-failure") as sandbox:
        eventually(lambda: sandbox.info().state == "stopped", what="a stop")
        info = sandbox.info()
        assert (info.reason, info.returncode) == ("completed", 3)
        eventually(lambda: sandbox.info().state == "running", what="a start")
        sandbox.stop()
    with machine(idle_timeout=1.0, network="none") as sandbox:
        eventually(lambda: sandbox.info().state == "stopped", what="a stop for idleness")
        assert sandbox.info().reason == "idle_timeout"


@pytest.mark.long
@pytest.mark.parametrize("victim", ["controller", "node"])
def test_kills_while_it_stops_and_starts(cluster: Cluster, victim: str) -> None:
    before = leaks.look(cluster.file)
    with machine(network="none") as sandbox:
        sandbox.files.write_text("/root/file", "kept")
        node_id = sandbox.info().node_id
        assert node_id is not None
        name = "controller" if victim == "controller" else node_actor_name(node_id)
        for step, delay_s in ((sandbox.stop, 0.05), (sandbox.start, 0.4)):
            work = threading.Thread(target=step)
            work.start()
            time.sleep(delay_s)
            kill(actor_pid(name))
            work.join(90)
            assert not work.is_alive()
            step()  # whatever came of the first
        assert sandbox.run("cat /root/file").stdout == "kept"
        sandbox.stop()
    leaks.assert_none(cluster.file, before)


def test_all_awaited(cluster: Cluster) -> None:
    async def life() -> None:
        sandbox = await shoal.Sandbox.create.aio(persistent=True, network="none")
        async with sandbox:
            await sandbox.stop.aio()
            await sandbox.start.aio()
        assert (await sandbox.info.aio()).state == "stopped", "leaving its block stops it"
        await sandbox.terminate.aio()

    asyncio.run(life())
