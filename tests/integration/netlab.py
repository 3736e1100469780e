"""A network under test: sandboxes on a bridge of their own, and a remote machine whose addresses tests choose."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from shoal.actors.engines.contract import Container
from shoal.actors.network import SandboxNetwork
from shoal.model.settings import NetworkSettings
from tests.contract.engines.labs import DockerLab

# Tries all targets at once. A dropped packet shows as "silent" after the deadline. An answer before the deadline
# counts, however late this program reads it.
PROBE = """
import errno, json, select, socket, sys, time
tries, found = {}, {}
for host, port in json.loads(sys.argv[1]):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setblocking(False)
    code = s.connect_ex((host, port))
    if code == errno.EINPROGRESS:
        tries[s] = (host, port)
    else:
        found[f"{host} {port}"] = errno.errorcode.get(code, "reached")
end = time.monotonic() + float(sys.argv[2])
left = 1.0
while tries and left > 0:
    left = max(0.0, end - time.monotonic())
    for s in select.select([], list(tries), [], left)[1]:
        code = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        host, port = tries.pop(s)
        found[f"{host} {port}"] = errno.errorcode[code] if code else "reached"
found |= {f"{host} {port}": "silent" for host, port in tries.values()}
print(json.dumps(found))
"""

# Serves TCP on the given ports (0: any) and answers UDP with "pong", from the address that was asked (8 is IP_PKTINFO).
# Prints the ports once it listens.
SERVE = """
import json, selectors, socket, sys
pick = selectors.DefaultSelector()
ports = []
for port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
    s = socket.create_server((sys.argv[2], port), family=family)
    u = socket.socket(family, socket.SOCK_DGRAM)
    u.bind((sys.argv[2], s.getsockname()[1]))
    u.setsockopt(socket.IPPROTO_IP, 8, 1)
    ports.append(s.getsockname()[1])
    pick.register(s, selectors.EVENT_READ, "tcp")
    pick.register(u, selectors.EVENT_READ, "udp")
print(json.dumps(ports), flush=True)
while True:
    for key, _ in pick.select():
        if key.data == "tcp":
            key.fileobj.accept()[0].close()
        else:
            data, about, _, peer = key.fileobj.recvmsg(512, 64)
            source = [(socket.IPPROTO_IP, 8, bytes(4) + about[0][2][4:8] + bytes(4))]
            key.fileobj.sendmsg([b"pong " + data], source, 0, peer)
"""

# Sends a datagram and waits for the answer.
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[3]))
s.sendto(b"ping", (sys.argv[1], int(sys.argv[2])))
try:
    print(s.recv(512).decode())
except TimeoutError:
    print("silent")
"""


PATIENCE_S = 20.0
"""For what is to be reached: only where it is not does anybody wait so long."""


def command(*argv: str) -> str:
    """Runs a program on the node; its output."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout


def entering(pid: int) -> list[str]:
    """The words before a command that let it run in the network namespace of `pid`, with the node's own files."""
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]


async def probe(prefix: list[str], targets: list[tuple[str, int]], seconds: float = 1.0) -> dict[tuple[str, int], str]:
    """What becomes of a TCP connection to each target: `reached`, `silent`, or the error's name."""
    output = await asyncio.to_thread(command, *prefix, sys.executable, "-c", PROBE, json.dumps(targets), str(seconds))
    found: dict[str, str] = json.loads(output)
    return {(host, port): found[f"{host} {port}"] for host, port in targets}


async def ask(prefix: list[str], host: str, port: int, seconds: float = 1.0) -> str:
    """What is answered to a UDP datagram, or `silent`."""
    output = await asyncio.to_thread(command, *prefix, sys.executable, "-c", ASK, host, str(port), str(seconds))
    return output.strip()


@contextmanager
def serving(prefix: list[str], *ports: int, host: str = "0.0.0.0") -> Iterator[list[int]]:
    """A server on all addresses of the node, or of the namespace that `prefix` enters; the ports it has."""
    argv = [*prefix, sys.executable, "-c", SERVE, json.dumps(ports), host]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Far:
    """Another machine, one hop away from the node, with whatever addresses it was given."""

    namespace: str

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]


@contextmanager
def far_machine(*addresses: str) -> Iterator[Far]:
    """A machine that has `addresses`, to which the node has routes, and which sends back through the node."""
    tag = secrets.token_hex(3)
    name, link = f"shoal-far-{tag}", f"far{tag}"
    command("ip", "netns", "add", name)
    command("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    try:
        command("ip", "addr", "add", "198.51.100.249/30", "dev", link)
        command("ip", "link", "set", link, "up")
        inside = ["ip", "-n", name]
        command(*inside, "addr", "add", "198.51.100.250/30", "dev", "eth0")
        command(*inside, "link", "set", "lo", "up")
        command(*inside, "link", "set", "eth0", "up")
        command(*inside, "route", "add", "default", "via", "198.51.100.249")
        for address in addresses:
            command(*inside, "addr", "add", f"{address}/32", "dev", "lo")
            command("ip", "route", "add", f"{address}/32", "via", "198.51.100.250")
        yield Far(name)
    finally:
        # With the link go its other end and the routes.
        command("ip", "link", "del", link)
        command("ip", "netns", "del", name)


class NetLab:
    """Sandboxes with a network."""

    def __init__(self, docker: DockerLab, network: SandboxNetwork, bridge: str, subnet: str) -> None:
        self.docker, self.network, self.bridge, self.subnet = docker, network, bridge, subnet

    @property
    def gateway(self) -> str:
        return self.subnet.replace(".0/24", ".1")

    async def sandbox(self, **spec: object) -> tuple[Container, str]:
        """(container, its address)"""
        container = await self.docker.start(**spec)
        return container, await self.network.attach(container.key, container.pid)


@asynccontextmanager
async def net_lab(docker: DockerLab, **settings: object) -> AsyncIterator[NetLab]:
    """An open network; closed at the end, with nothing left of it."""
    tag = secrets.token_hex(2)
    bridge, subnet = f"sht{tag}", f"10.{192 + int(tag[:2], 16) % 16}.{int(tag[2:], 16)}.0/24"
    network = SandboxNetwork(NetworkSettings.model_validate({"bridge": bridge, "subnet": subnet, **settings}), "test")
    try:
        await network.open()
        yield NetLab(docker, network, bridge, subnet)
    finally:
        await network.close()
    left = await asyncio.to_thread(traces, bridge, subnet)
    assert left == [], left


def traces(bridge: str, subnet: str) -> list[str]:
    """Everything on the node that speaks of the bridge or its subnet. A cluster beside it took the bridge's address for
    one of the machine's own, and its table may say so for a while."""
    rules = re.sub(rf"^table \S+ shoal_(?!{bridge} ).*?^}}", "", command("nft", "list", "ruleset"), flags=re.S | re.M)
    said = [command("ip", "-o", "link"), command("ip", "-4", "-o", "addr"), rules]
    said += [command("iptables-save"), command("ip", "route", "show", "table", "all")]
    net = subnet.removesuffix("0/24")
    return [line for text in said for line in text.splitlines() if bridge in line or net in line]
