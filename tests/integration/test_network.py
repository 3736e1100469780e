"""What sandboxes reach and what they don't, tried from inside their own network namespace."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.actors import inherited_settings
from shoal.actors.engines.contract import Mount
from shoal.actors.network import SandboxNetwork, guarded, links
from shoal.actors.network.links import port_name
from shoal.model.errors import FailedPrecondition, InvalidRequest, NotFound
from shoal.model.settings import HostSettings, NetworkSettings
from tests.contract.engines.labs import DockerLab, opened
from tests.integration.netlab import (
    PATIENCE_S,
    NetLab,
    ask,
    command,
    entering,
    far_machine,
    net_lab,
    probe,
    serving,
    traces,
)
from tests.ports import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

PRIVATE = ["10.77.0.2", "100.64.7.7", "169.254.7.7", "172.20.7.7", "192.168.77.2", "198.18.7.7", "192.0.0.7"]
METADATA = ["169.254.169.254", "100.100.100.200", "168.63.129.16"]
PUBLIC = "198.51.100.10"


@pytest.fixture
async def docker_lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[DockerLab]:
    lab = DockerLab(tmp_path)
    async with opened(lab):
        yield lab


@pytest.fixture
async def lab(docker_lab: DockerLab) -> AsyncIterator[NetLab]:
    async with net_lab(docker_lab) as lab:
        yield lab


def as_guarded(bridge: str) -> list[str]:
    """The words before a command that run it as programs of the node do which speak to an address that a user chose."""
    return ["setpriv", f"--regid={guarded.group_id(bridge)}", "--clear-groups"]


def own_addresses() -> list[str]:
    links = json.loads(command("ip", "-j", "-4", "addr"))
    found = [info["local"] for link in links for info in link.get("addr_info", ())]
    return [address for address in found if address != "127.0.0.1"]


async def test_no_address_of_the_node_is_reached(lab: NetLab) -> None:
    container, _ = await lab.sandbox()
    # An address that came after the rules, and looks public.
    command("ip", "addr", "add", "198.51.100.77/32", "dev", "lo")
    try:
        addresses = own_addresses()
        assert {lab.gateway, "198.51.100.77"} <= set(addresses)
        with serving([], 0, 0) as ports:
            targets = [(address, port) for address in addresses for port in (*ports, 22, 53)]
            from_node = await probe([], [(address, ports[0]) for address in addresses], PATIENCE_S)
            assert set(from_node.values()) == {"reached"}
            inside = entering(container.pid)
            assert set((await probe(inside, targets)).values()) == {"silent"}
            assert await ask([], lab.gateway, ports[0], PATIENCE_S) == "pong ping"
            assert await ask(inside, lab.gateway, ports[0]) == "silent"

            # And it is the rules that keep it so: without them it is reached, and `verify` brings them back.
            command("nft", "delete", "table", "inet", f"shoal_{lab.bridge}")
            assert (await probe(inside, [(lab.gateway, ports[0])], PATIENCE_S)) == {(lab.gateway, ports[0]): "reached"}
            assert await lab.network.verify()
            assert (await probe(inside, [(lab.gateway, ports[0])])) == {(lab.gateway, ports[0]): "silent"}
            assert not await lab.network.verify()
    finally:
        command("ip", "addr", "del", "198.51.100.77/32", "dev", "lo")


async def test_sandboxes_do_not_reach_each_other(lab: NetLab) -> None:
    (one, _), (other, address) = await lab.sandbox(), await lab.sandbox()
    port = port_name(other.key)
    with serving(entering(other.pid), 8000):
        inside, target = entering(one.pid), (address, 8000)
        assert (await probe(entering(other.pid), [target], PATIENCE_S)) == {target: "reached"}
        assert (await probe(inside, [target]))[target] in ("silent", "EHOSTUNREACH")

        # Two defences, each enough alone: the packet rules, and the bridge's isolated ports.
        command("nft", "delete", "table", "inet", f"shoal_{lab.bridge}")
        assert (await probe(inside, [target]))[target] in ("silent", "EHOSTUNREACH")
        command("ip", "link", "set", port, "type", "bridge_slave", "isolated", "off")
        command("ip", "link", "set", port_name(one.key), "type", "bridge_slave", "isolated", "off")
        # Forget that nobody answered before.
        command(*inside, "ip", "neigh", "flush", "all")
        assert (await probe(inside, [target], PATIENCE_S)) == {target: "reached"}
        assert await lab.network.verify()


async def test_private_networks_and_metadata_stay_closed_and_the_rest_is_open(lab: NetLab) -> None:
    container, _ = await lab.sandbox()
    with far_machine(*PRIVATE, *METADATA, PUBLIC) as far, serving(far.prefix, 80, 53):
        closed = [(address, port) for address in (*PRIVATE, *METADATA) for port in (80, 53)]
        assert set((await probe([], closed, PATIENCE_S)).values()) == {"reached"}
        assert set((await probe(entering(container.pid), closed)).values()) == {"silent"}
        assert (await probe(entering(container.pid), [(PUBLIC, 80)], PATIENCE_S)) == {(PUBLIC, 80): "reached"}
        assert await ask(entering(container.pid), PUBLIC, 53, PATIENCE_S) == "pong ping"
        assert await ask(entering(container.pid), PRIVATE[0], 53) == "silent"

        as_helper = as_guarded(lab.bridge)
        with serving([], 0) as ports:
            own = [(address, ports[0]) for address in (*own_addresses(), "127.0.0.1")]
            assert set((await probe(as_helper, [*closed, *own])).values()) == {"silent"}
        assert (await probe(as_helper, [(PUBLIC, 80)], PATIENCE_S)) == {(PUBLIC, 80): "reached"}
    assert await answered_by_one_that_closes(4 << 20) == 4 << 20  # of nobody's socket, and so of no group


async def answered_by_one_that_closes(size: int) -> int:
    """How many bytes of an answer arrive on the node itself, if the server sends them all and closes before they are
    read."""
    ended = asyncio.Event()

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1 << 16)
    got = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            while part := await reader.read(1 << 16):
                got += len(part)
                if not ended.is_set():
                    await asyncio.sleep(0)
    except TimeoutError:
        pass
    finally:
        writer.close()
        server.close()
    return got


async def test_what_the_settings_open_is_open_and_no_more(docker_lab: DockerLab) -> None:
    everywhere = free_port()  # of the node, too
    allow = ["10.77.0.2:8080", "192.168.77.0/24", "169.254.169.254", f"0.0.0.0/0:{everywhere}"]
    async with net_lab(docker_lab, allow=allow, dns=["172.20.7.7"]) as lab:
        container, _ = await lab.sandbox()
        other, address = await lab.sandbox()
        assert lab.network.resolv_conf() == "nameserver 172.20.7.7\n"
        ports = (53, 80, 8080, everywhere)
        inside = entering(container.pid)
        with (
            far_machine(*PRIVATE, *METADATA) as far,
            serving(far.prefix, *ports),
            serving(entering(other.pid), everywhere),
        ):
            opened = {
                ("10.77.0.2", 8080),
                ("172.20.7.7", 53),
                *(("192.168.77.2", port) for port in ports),
                *((a, everywhere) for a in PRIVATE),
            }
            assert set((await probe(inside, sorted(opened), PATIENCE_S)).values()) == {"reached"}
            closed = [(a, port) for a in (*PRIVATE, *METADATA) for port in ports if (a, port) not in opened]
            assert "reached" not in (await probe(inside, closed)).values()
            assert await ask(inside, "172.20.7.7", 53, PATIENCE_S) == "pong ping"
            as_helper = as_guarded(lab.bridge)
            assert set((await probe(as_helper, sorted(opened - {("172.20.7.7", 53)}), PATIENCE_S)).values()) == {
                "reached"
            }
            assert "reached" not in (await probe(as_helper, closed)).values()
            # Whatever stands in the settings: not the node, not another sandbox.
            with serving([], 0, everywhere):
                never = [(a, everywhere) for a in (lab.gateway, address, *own_addresses())]
                assert "reached" not in (await probe(inside, never)).values()


async def test_the_clusters_nodes_stay_closed_whatever_is_open(docker_lab: DockerLab) -> None:
    private = "10.77.0.2"
    async with net_lab(docker_lab, allow=[PUBLIC, private], dns=[PUBLIC]) as lab:
        container, _ = await lab.sandbox()
        inside, targets = entering(container.pid), [(PUBLIC, 53), (PUBLIC, 80), (private, 80)]
        with far_machine(PUBLIC, private) as far, serving(far.prefix, 53, 80):
            assert set((await probe(inside, targets, PATIENCE_S)).values()) == {"reached"}
            await lab.network.close_off([PUBLIC, private, "2001:db8::1"])
            assert set((await probe(inside, targets)).values()) == {"silent"}

            # A node that starts again, or whose rules somebody removed, has not forgotten them.
            again = SandboxNetwork(NetworkSettings(bridge=lab.bridge, subnet=lab.subnet, allow=(PUBLIC,)), "test")
            await again.open()
            assert not await again.verify()
            command("nft", "flush", "set", "inet", f"shoal_{lab.bridge}", "nodes")
            assert await again.verify()
            assert set((await probe(inside, targets)).values()) == {"silent"}

            await again.close_off([private])
            assert (await probe(inside, [(PUBLIC, 80)], PATIENCE_S)) == {(PUBLIC, 80): "reached"}


async def test_nothing_comes_in_from_outside(lab: NetLab) -> None:
    container, address = await lab.sandbox()
    with far_machine(PUBLIC) as far, serving(entering(container.pid), 8000):
        assert (await probe(far.prefix, [(address, 8000)])) == {(address, 8000): "silent"}
        assert (await probe([], [(address, 8000)])) == {(address, 8000): "silent"}


async def test_a_forged_source_goes_nowhere(lab: NetLab) -> None:
    (container, own), (_, others) = await lab.sandbox(), await lab.sandbox()
    inside, target = entering(container.pid), (PUBLIC, 80)
    mac = json.loads(command(*inside, "ip", "-j", "link", "show", "eth0"))[0]["address"]
    with far_machine(PUBLIC) as far, serving(far.prefix, 80):

        async def tried(source: str) -> str:
            command(*inside, "ip", "route", "replace", "default", "via", lab.gateway, "src", source)
            command(*inside, "ip", "neigh", "flush", "all")
            return (await probe(inside, [target], PATIENCE_S if source == own else 1.0))[target]

        assert await tried(own) == "reached"
        free = lab.subnet.replace(".0/24", ".200")
        for source in ("203.0.113.99", others, free):
            command(*inside, "ip", "addr", "add", f"{source}/32", "dev", "eth0")
            assert await tried(source) == "silent", source
            command(*inside, "ip", "addr", "del", f"{source}/32", "dev", "eth0")
        assert await tried(own) == "reached"

        # And it is the rules that keep it so: without them it is reached, and `verify` brings them back.
        command("nft", "delete", "table", "bridge", f"shoal_{lab.bridge}")
        command(*inside, "ip", "addr", "add", f"{free}/32", "dev", "eth0")
        command(*inside, "ip", "route", "replace", "default", "via", lab.gateway, "src", free)
        assert (await probe(inside, [target], PATIENCE_S))[target] == "reached"
        assert await lab.network.verify()
        assert await tried(free) == "silent"
        assert await tried(own) == "reached"

        command(*inside, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
        # Nobody tells it the gateway's link address, as nobody heard its question.
        assert (await probe(inside, [target]))[target] in ("silent", "EHOSTUNREACH")
        command(*inside, "ip", "link", "set", "eth0", "address", mac)
        assert await tried(own) == "reached"


async def test_one_sandbox_does_not_fill_the_kernels_table_of_connections(docker_lab: DockerLab) -> None:
    tracked = "/proc/sys/net/netfilter/nf_conntrack_count"
    flood = "import socket, sys\nfor port in range(1, 2001):\n"
    flood += "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], port))\n"
    async with net_lab(docker_lab, connections=100) as lab:
        (container, _), (other, _) = await lab.sandbox(), await lab.sandbox()
        with far_machine(PUBLIC) as far, serving(far.prefix, 80):
            before = int(command("cat", tracked))
            command(*entering(container.pid), sys.executable, "-c", flood, PUBLIC)
            assert int(command("cat", tracked)) - before < 1000  # others' connections come and go
            assert (await probe(entering(container.pid), [(PUBLIC, 80)]))[(PUBLIC, 80)] == "silent"
            assert (await probe(entering(other.pid), [(PUBLIC, 80)], PATIENCE_S))[(PUBLIC, 80)] == "reached"
            assert not await lab.network.verify()  # what is counted is no damage


async def test_there_is_no_ipv6(lab: NetLab) -> None:
    container, _ = await lab.sandbox()
    inside = entering(container.pid)
    assert "inet6" not in command(*inside, "ip", "-6", "addr", "show", "dev", "eth0")
    assert command("ip", "-6", "addr", "show", "dev", lab.bridge) == ""
    # Even one that gave itself an address finds nobody.
    command(*inside, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    command(*inside, "ip", "-6", "addr", "add", "fd00:5a::2/64", "dev", "eth0", "nodad")
    command("sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{lab.bridge}/disable_ipv6")
    command("ip", "-6", "addr", "add", "fd00:5a::1/64", "dev", lab.bridge, "nodad")
    with serving([], 0, host="::") as ports:
        target = ("fd00:5a::1", ports[0])
        assert (await probe([], [target], PATIENCE_S)) == {target: "reached"}
        # Nobody tells its link address, either, and after three seconds that is what one is told.
        assert (await probe(inside, [target]))[target] in ("silent", "EHOSTUNREACH")
    assert await lab.network.verify()
    assert command("ip", "-6", "addr", "show", "dev", lab.bridge) == ""


async def test_packages_are_installed_from_the_machines_index(lab: NetLab, tmp_path: Path) -> None:
    """DNS, the way out and back, and the machine's CA: all that `pip` needs."""
    taken = inherited_settings.inherit(
        HostSettings(ca_bundle=True, proxy=True, package_index=True),
        os.environ,
        await asyncio.to_thread(inherited_settings.pip_config),
    )
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(lab.network.resolv_conf())
    mounts = (*taken.mounts, Mount(resolv, "/etc/resolv.conf"))
    container, _ = await lab.sandbox(env=taken.env, mounts=mounts)
    download = ["python3", "-m", "pip", "download", "--no-cache-dir", "--no-deps", "--dest", "/tmp/got", "six"]
    code, said = await lab.docker.run(container, *download)
    assert code == 0, said
    code, said = await lab.docker.run(container, "ls", "/tmp/got")
    assert said.startswith("six-"), said


async def test_without_a_network_there_is_only_the_loopback(docker_lab: DockerLab) -> None:
    container = await docker_lab.start()
    links = json.loads(command(*entering(container.pid), "ip", "-j", "addr"))
    assert [link["ifname"] for link in links] == ["lo"]
    assert (await probe(entering(container.pid), [(PUBLIC, 80)])) == {(PUBLIC, 80): "ENETUNREACH"}


async def test_what_was_prepared_for_a_container_that_never_came_is_undone(lab: NetLab) -> None:
    await lab.network.prepare("c-none")
    assert set(lab.network.attached()) == {"c-none"}
    await lab.network.detach("c-none")
    assert lab.network.attached() == {}
    container = await lab.docker.start()
    await lab.network.prepare(container.key)
    prepared = lab.network.attached()[container.key]
    assert await lab.network.attach(container.key, container.pid) == prepared
    assert not await lab.network.verify()


async def test_attaching_and_detaching_are_idempotent(lab: NetLab) -> None:
    container, address = await lab.sandbox()
    assert await lab.network.attach(container.key, container.pid) == address
    assert lab.network.attached() == {container.key: address}
    for _ in range(2):
        await lab.network.detach(container.key)
        assert lab.network.attached() == {}
        assert not links.exists(port_name(container.key))


async def test_a_node_that_starts_again_knows_who_is_attached(lab: NetLab) -> None:
    attached = [await lab.sandbox() for _ in range(2)]
    again = SandboxNetwork(NetworkSettings(bridge=lab.bridge, subnet=lab.subnet), "test")
    await again.open()
    assert again.attached() == {container.key: address for container, address in attached}
    third = await lab.docker.start()
    assert await again.attach(third.key, third.pid) not in {address for _, address in attached}
    for container, address in attached:
        assert await again.attach(container.key, container.pid) == address


@pytest.mark.parametrize("pid", [os.getpid(), 0, -1, 2**22 + 1])
async def test_the_nodes_own_network_is_never_touched(lab: NetLab, pid: int) -> None:
    before = own_addresses()
    with pytest.raises(NotFound):
        await lab.network.attach("c-none", pid)
    assert own_addresses() == before
    assert lab.network.attached() == {}


async def test_a_container_that_ended_leaves_no_interface(lab: NetLab) -> None:
    container, _ = await lab.sandbox()
    await lab.docker.engine.remove(container.key)
    await lab.network.detach(container.key)
    assert not links.exists(port_name(container.key))
    assert lab.network.attached() == {}


async def test_another_clusters_bridge_is_left_alone(lab: NetLab) -> None:
    await lab.sandbox()
    rules = command("nft", "list", "table", "inet", f"shoal_{lab.bridge}")
    with pytest.raises(FailedPrecondition, match="in use by shoal test"):
        await SandboxNetwork(NetworkSettings(bridge=lab.bridge, subnet=lab.subnet), "another").open()
    assert command("nft", "list", "table", "inet", f"shoal_{lab.bridge}") == rules


async def test_a_subnet_that_the_node_uses_is_refused(lab: NetLab) -> None:
    with pytest.raises(InvalidRequest, match="overlaps") as caught:
        await SandboxNetwork(NetworkSettings(bridge="shtwice", subnet=lab.subnet), "test").open()
    assert caught.value.field == "network.subnet"
    assert [line for line in await asyncio.to_thread(traces, "shtwice", "none/24") if "shtwice" in line] == []
